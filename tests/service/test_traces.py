"""Traces: a collector is sent one span a traced request with its stages below it, and nobody is harmed where it is away."""

import asyncio
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from srp4ctr.contract.errors import ConfigError
from srp4ctr.runtime.serving import free_port
from srp4ctr_service.tracing import Tracing

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `traces` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
BODY = {"user_id": "user-7", "item_ids": ["1", "2", "3"]}
STAGES = ["parse", "state", "queue", "rows", "model", "answer"]


class Collector:
    """What was sent to it, span by span."""

    def __init__(self):
        self.url = ""
        self.spans = []
        self.resources = []

    def take(self, body):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({one.key: one.value.string_value for one in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def requests(self):
        """Spans of whole requests."""
        return [span for span in self.spans if span.name.startswith(("POST", "GET"))]

    def below(self, parent):
        """The spans below another, as they begin."""
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, STAGES.index(span.name)))


def attributes(span):
    """By name."""
    return {
        one.key: one.value.string_value or one.value.int_value or list(one.value.array_value.values)
        for one in span.attributes
    }


@pytest.fixture
def collector():
    """An OTLP receiver on a socket."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


@pytest.fixture
def traced(settings, first, activate, start):
    """Start a service that sends traces there."""
    activate(first)
    return lambda url, share=0.0: start(
        settings.model_copy(update={"traces_url": url, "traces_share": share})
    )


def test_a_request_is_a_span_with_its_stages_below(traced, collector, wait_until):
    """Under the caller's trace, stages one after the other within the request, with what its log line says."""
    api = traced(collector.url)
    answer = api.post("/score", json=BODY, headers=SAMPLED | {"x-request-id": "r-1"})
    assert answer.status_code == 200
    wait_until(collector.requests)
    (span,) = collector.requests()
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("POST /score", TRACE_ID, PARENT_ID)
    found = attributes(span)
    assert found["http.response.status_code"] == 200
    assert found["http.route"] == "/score"
    assert (found["srp4ctr.request_id"], found["srp4ctr.version"]) == ("r-1", "first")
    assert (found["srp4ctr.candidates"], found["srp4ctr.tier"]) == (3, "full")
    stages = collector.below(span)
    assert [one.name for one in stages] == STAGES
    moment = span.start_time_unix_nano
    for one in stages:
        assert one.trace_id.hex() == TRACE_ID
        # Times are rounded to nanoseconds one by one.
        assert one.start_time_unix_nano >= moment - 10
        assert one.end_time_unix_nano >= one.start_time_unix_nano
        moment = one.end_time_unix_nano
    assert moment <= span.end_time_unix_nano + 10
    assert collector.resources[0]["service.name"] == "srp4ctr"
    assert "user-7" not in str(collector.spans)


def test_a_problem_is_traced_too(traced, collector, wait_until):
    """A request that is refused is a span without an error of ours; the id of a user in the path is not in it."""
    api = traced(collector.url)
    assert api.post("/score", json={"user_id": "user-7"}, headers=SAMPLED).status_code == 422
    assert api.delete("/users/user-7", headers=SAMPLED).status_code == 200
    wait_until(lambda: len(collector.spans) == 2)
    by_name = {span.name: span for span in collector.spans}
    assert attributes(by_name["POST /score"])["http.response.status_code"] == 422
    assert by_name["POST /score"].status.code == 0
    assert "DELETE /users/{user_id:path}" in by_name
    assert "user-7" not in str(collector.spans)


def test_callers_decide_and_the_share_decides_for_the_others(traced, collector, wait_until):
    """Sampled by the caller: traced. Not sampled: never. Without a `traceparent`, or a broken one: by the share."""
    api = traced(collector.url, share=1.0)
    api.post("/score", json=BODY, headers=NOT_SAMPLED)
    api.post("/score", json=BODY)
    api.post("/score", json=BODY, headers={"traceparent": "00-nonsense-01"})
    wait_until(lambda: len(collector.requests()) == 2)
    assert all(
        span.parent_span_id == b"" and span.trace_id.hex() != TRACE_ID for span in collector.requests()
    )
    assert len({span.trace_id for span in collector.requests()}) == 2

    rarely = traced(collector.url, share=0.0)
    rarely.post("/score", json=BODY)
    rarely.post("/score", json=BODY, headers=SAMPLED)
    wait_until(lambda: len(collector.requests()) == 3)
    assert collector.requests()[-1].trace_id.hex() == TRACE_ID


def test_all_users_of_a_batch_are_in_one_trace(traced, collector, wait_until):
    """Each of them has a state to read and a run of the model."""
    api = traced(collector.url)
    both = {"requests": [BODY, BODY | {"user_id": "8"}]}
    assert api.post("/score/batch", json=both, headers=SAMPLED).status_code == 200
    wait_until(collector.requests)
    names = [one.name for one in collector.below(collector.requests()[0])]
    assert sorted(names) == sorted([*STAGES, "state", "queue", "rows", "model"])


def test_a_collector_that_is_away_harms_nobody(traced):
    """Requests are answered, and the service ends in order."""
    api = traced(f"http://127.0.0.1:{free_port()}/v1/traces", share=1.0)
    for _ in range(20):
        assert api.post("/score", json=BODY).status_code == 200


def test_a_collector_that_never_answers_is_not_waited_for_again_and_again():
    """The end waits for one try, and not for one a batch of spans."""
    tries = []
    ended = threading.Event()

    class Silent(socketserver.BaseRequestHandler):
        def handle(self):
            tries.append(self.client_address)
            ended.wait(60)

    async def send_four_batches(url):
        tracing = Tracing(url, 1.0, "srp4ctr")
        async with tracing.sent():
            for _ in range(4 * 512):
                trace = tracing.begin({"headers": []})
                tracing.end(trace, "POST /score", time.perf_counter(), {}, 200)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asyncio.run(send_four_batches(f"http://127.0.0.1:{server.server_address[1]}/v1/traces"))
        ended.set()
        server.shutdown()
    assert len(tries) == 1


@contextmanager
def serve(settings, **variables):
    """`srp4ctr serve` as a process; gives it and its log lines, of which the first tells that it runs."""
    environment = os.environ | {
        "SRP4CTR_REDIS_URL": settings.redis_url,
        "SRP4CTR_NAMESPACE": settings.namespace,
        "SRP4CTR_VAR_DIR": str(settings.var_dir),
        **variables,
    }
    command = [sys.executable, "-m", "srp4ctr.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def test_log_lines_of_traced_requests_name_the_trace(settings, first, activate, wait_until):
    """One line says that a collector is away, and not one for every try; the trace can be found by the log."""
    import httpx

    activate(first)
    away = f"http://127.0.0.1:{free_port()}/v1/traces"
    lines = []
    with serve(settings, SRP4CTR_TRACES_URL=away, SRP4CTR_TRACES_SHARE="0") as process:
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        wait_until(lambda: any("Application startup complete" in line for line in lines))
        url = re.search(r'"address":"([^"]+)"', "".join(lines))[1]
        with httpx.Client(base_url=url) as api:
            for _ in range(3):
                api.post("/score", json=BODY, headers=SAMPLED)
            api.post("/score", json=BODY)
        wait_until(lambda: any("traces_not_sent" in line for line in lines))
    reader.join(20)
    requests = [found for line in lines if (found := json.loads(line))["event"] == "request"]
    assert [one.get("trace_id") for one in requests] == [TRACE_ID] * 3 + [None]
    assert all(re.fullmatch("[0-9a-f]{16}", one["span_id"]) for one in requests[:3])
    assert sum("traces_not_sent" in line for line in lines) == 1
    assert process.returncode == 0


def test_without_the_library_the_setting_is_refused(monkeypatch):
    """With what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ConfigError, match=r"SRP4CTR_TRACES_URL: .*pip install 'srp4ctr\[service,traces\]'"):
        Tracing("http://collector:4318/v1/traces", 1.0, "srp4ctr")

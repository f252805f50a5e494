"""OpenTelemetry traces: one span a request, and one for each of its stages, sent by OTLP over HTTP.

Requests that come with a W3C `traceparent` are traced as that says, of the others a share. Spans are made when the request is
over, of times that are measured anyway, so that a request that is not traced costs one look at its headers. The library's own
`OTEL_...` variables hold for what is not a setting of ours, such as headers for the collector.
"""

import asyncio
import contextlib
import logging
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import structlog
from starlette.types import Scope

from srp4ctr import __version__
from srp4ctr.contract.errors import ConfigError
from srp4ctr_service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

log = structlog.get_logger()

Attribute = str | int | Sequence[str]

HEADER = b"traceparent"
EXPORT_TIMEOUT_S = 2
"""For the collector to take some spans."""
_PARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1
_ERROR = 500


@dataclass(frozen=True)
class Trace:
    """A request that is traced: ids of its trace, of its span and of the span that it belongs to (0: none), and its stages,
    each with its begin and its end by `time.perf_counter()`.
    """

    trace_id: int
    span_id: int
    parent_id: int
    stages: list[tuple[str, float, float]] = field(default_factory=list)

    def ids(self) -> dict[str, str]:
        """The ids of trace and span, as logs and collectors write them."""
        return {"trace_id": f"{self.trace_id:032x}", "span_id": f"{self.span_id:016x}"}


class Tracing:
    """Decides which requests are traced, and sends their spans from a thread of its own; nobody waits for that."""

    def __init__(self, url: str, share: float, namespace: str) -> None:
        """Raises ConfigError where the library is not installed."""
        try:
            import opentelemetry.exporter.otlp.proto.http
            import opentelemetry.sdk.trace  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"SRP4CTR_TRACES_URL: {error.name} is not installed; pip install 'srp4ctr[service,traces]'"
            ) from error
        self._url = url
        self._share = share
        self._namespace = namespace
        self._sender: _Sender | None = None

    @classmethod
    def configured(cls, settings: Settings) -> Self | None:
        """As the settings say, None where there are no traces; raises ConfigError."""
        if settings.traces_url is None:
            return None
        return cls(settings.traces_url, settings.traces_share, settings.namespace)

    def begin(self, scope: Scope) -> Trace | None:
        """The trace of a request that begins, None where it is not traced."""
        for name, value in scope["headers"]:
            if name == HEADER:
                found = _PARENT.fullmatch(value)
                # What is none is ignored, as the standard wants it.
                if found is None or not int(found[1], 16) or not int(found[2], 16):
                    break
                if not int(found[3], 16) & _SAMPLED:
                    return None
                return Trace(int(found[1], 16), _random_id(64), int(found[2], 16))
        if random.random() >= self._share:  # noqa: S311 -- a sample, and no secret
            return None
        return Trace(_random_id(128), _random_id(64), 0)

    def end(
        self, trace: Trace, name: str, started: float, attributes: Mapping[str, Attribute], status: int
    ) -> None:
        """Have the spans of a request sent that has ended; `started` is by `time.perf_counter()`."""
        if self._sender is not None:
            self._sender.send(trace, name, started, attributes, status)

    @contextlib.asynccontextmanager
    async def sent(self) -> AsyncIterator[None]:
        """Send while entered, and what is left at the end."""
        self._sender = sender = _Sender(self._url, self._namespace)
        try:
            yield
        finally:
            self._sender = None
            await asyncio.to_thread(sender.close)


class _Sender:
    """Makes spans and hands them to the library."""

    def __init__(self, url: str, namespace: str) -> None:
        # Only here, since who wants no traces need not have it installed.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        names = {"service.name": "srp4ctr", "service.namespace": namespace, "service.version": __version__}
        self._resource = Resource.create(names)
        self._scope = InstrumentationScope("srp4ctr", __version__)
        # The library has a line for every try; one that says so when it begins, and one when it is over, are enough.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._closing = threading.Event()
        exporter = _noting(OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S), url, self._closing)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=1000)

    def send(
        self, trace: Trace, name: str, started: float, attributes: Mapping[str, Attribute], status: int
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
        from opentelemetry.trace.status import Status, StatusCode

        sampled = TraceFlags(TraceFlags.SAMPLED)
        own = SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=sampled)
        parent = SpanContext(trace.trace_id, trace.parent_id, is_remote=True, trace_flags=sampled)
        now, now_ns = time.perf_counter(), time.time_ns()

        def at_ns(moment: float) -> int:
            return now_ns - round(1e9 * (now - moment))

        for stage, begin, end in trace.stages:
            context = SpanContext(trace.trace_id, _random_id(64), is_remote=False, trace_flags=sampled)
            span = ReadableSpan(
                stage,
                context,
                own,
                self._resource,
                kind=SpanKind.INTERNAL,
                start_time=at_ns(begin),
                end_time=at_ns(end),
                instrumentation_scope=self._scope,
            )
            self._processor.on_end(span)
        request = ReadableSpan(
            name,
            own,
            parent if trace.parent_id else None,
            self._resource,
            attributes,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR if status >= _ERROR else StatusCode.UNSET),
            start_time=at_ns(started),
            end_time=now_ns,
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(request)

    def close(self) -> None:
        """Send what is left, until the collector does not take it."""
        self._closing.set()
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def _noting(exporter: "SpanExporter", url: str, closing: threading.Event) -> "SpanExporter":
    """An exporter that logs when the collector begins to take no spans, and when it takes them again."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Noting(SpanExporter):
        taken = True

        def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
            if closing.is_set() and not self.taken:
                # Waiting for it batch by batch would hold up the service's end.
                return SpanExportResult.FAILURE
            try:
                result = exporter.export(spans)
            except OSError:
                # Most releases of the library let the errors of `requests` through.
                result = SpanExportResult.FAILURE
            taken = result is SpanExportResult.SUCCESS
            if taken != self.taken:
                self.taken = taken
                if taken:
                    log.info("traces_sent_again", collector=url)
                else:
                    log.warning("traces_not_sent", collector=url)
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    return Noting()


def _random_id(bits: int) -> int:
    return random.getrandbits(bits) or 1

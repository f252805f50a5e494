"""Dashboards and alerts ask for metrics that the service, a refresh worker and the monitor really export."""

import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from srp4ctr.runtime.serving import COMMAND, free_port
from srp4ctr_service import problems
from srp4ctr_service.online_quality import Judged, OnlineQuality

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
RULES = ROOT / "deploy/prometheus/alerts.yml"
PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
BY_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus itself gives to what it asks for."""

NAME = re.compile(r"\b((?:srp4ctr[:_]|process_)\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+) ?(=~|!~|!=|=)\s*"([^"]*)"')
GROUPED = re.compile(r"\b(?:by|on|ignoring) ?\(([^)]*)\)")


def rules() -> list[dict]:
    """Recording rules and alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict]:
    """The alerts."""
    return [rule for rule in rules() if "alert" in rule]


def queries() -> list[str]:
    """All expressions of dashboards, recording rules and alerts."""
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])] + [
        rule["expr"] for rule in rules()
    ]


def labels_of(*texts: str) -> dict[str, dict[str, set[str]]]:
    """Names of samples with their labels and the values of these, of what was scraped."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                for label, value in sample.labels.items():
                    found[sample.name][label].add(value)
                if not sample.labels:
                    found[sample.name] = defaultdict(set)
    return found


def monitored() -> str:
    """What a monitor exports that has seen a click and none."""
    registry = CollectorRegistry()
    OnlineQuality(100, registry).add([Judged("v", 0.5, True), Judged("v", 0.25, False)], 0)
    return generate_latest(registry).decode()


@pytest.fixture
def exported(api, settings, wait_until) -> dict[str, dict[str, set[str]]]:
    """Samples of a service after some requests, of a refresh worker, and of a monitor after some impressions."""
    score = {"user_id": "1", "item_ids": ["1", "2"]}
    assert api.post("/score", json=score).status_code == 200
    assert api.post("/score", json={"user_id": "1"}).status_code == 422
    port = free_port()
    environment = os.environ | {
        "SRP4CTR_REDIS_URL": str(settings.redis_url),
        # Where no version is active: it has nothing to do, and says so.
        "SRP4CTR_NAMESPACE": "idle",
        "SRP4CTR_VAR_DIR": str(settings.var_dir),
        "SRP4CTR_REFRESH_METRICS_PORT": str(port),
    }
    with subprocess.Popen([*COMMAND, "refresh"], env=environment, stdout=subprocess.DEVNULL) as worker:
        try:
            url = f"http://127.0.0.1:{port}/metrics"

            def answers() -> bool:
                try:
                    return httpx.get(url).status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(answers)
            recorded = {rule["record"]: {"bin": set()} for rule in rules() if "record" in rule}
            return labels_of(api.get("/metrics").text, httpx.get(url).text, monitored()) | recorded
        finally:
            worker.terminate()


def test_every_query_is_of_what_is_exported(exported):
    """No panel and no alert stays empty because of a name or a label that nobody exports."""
    assert len(queries()) > 40
    for query in queries():
        names = NAME.findall(query)
        assert names or query.count('up{job="') > 0, query
        known = set(BY_PROMETHEUS)
        for name, matchers in names:
            assert name in exported, f"{name} in {query}"
            own = set(exported[name]) | BY_PROMETHEUS
            assert set(re.findall(r"(\w+) ?(?:=|!=|=~|!~)\s*\"", matchers)) <= own, query
            known |= own
        for group in GROUPED.findall(query):
            assert {one.strip() for one in group.split(",")} <= known, query


def test_every_query_is_of_values_that_there_are(exported):
    """No panel and no alert stays empty, and none misses what it is for, because of a value that no label ever has."""
    jobs = {job["job_name"] for job in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]}
    # Counted from the first of them on, unlike what a closed set of values is known of.
    later = {
        ("srp4ctr_problems_total", "type"): {kind.name for kind in problems.KINDS},
        ("srp4ctr_requests_total", "status"): {str(status.value) for status in HTTPStatus},
    }
    checked = 0
    for query in queries():
        for name, matchers in [*NAME.findall(query), *re.findall(r"\b(up)\{([^}]*)\}", query)]:
            for label, sign, value in MATCHER.findall(matchers):
                there = jobs if label == "job" else exported[name][label] | later.get((name, label), set())
                # Each alternative by itself: one that is misspelt is not excused by the others.
                for one in value.split("|") if "~" in sign else [re.escape(value)]:
                    assert any(re.fullmatch(one, known) for known in there), f'{label}="{one}" in {query}'
                    checked += 1
    assert checked > 20


def test_redis_is_measured(exported, api):
    """The worker tells Redis's memory, and who waits to be refreshed."""
    for name in ("srp4ctr_redis_memory_bytes", "srp4ctr_refresh_waiting", "srp4ctr_dead_letters"):
        assert name in exported
    ages = [
        line for line in api.get("/metrics").text.splitlines() if line.startswith("srp4ctr_user_state_age")
    ]
    # User 1 has no state here, so that there is no age to count.
    assert "srp4ctr_user_state_age_seconds_count 0.0" in ages


def test_every_alert_has_a_runbook():
    """docs/alerts.md has a section for each alert, and no other."""
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/alerts.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{rule['alert'].lower()}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_alerts_fire_when_they_should(tmp_path):
    """Prometheus's own tool: nothing fires where all is well, and each alert where it is not."""
    folder = shutil.copytree(ROOT / "deploy/prometheus", tmp_path / "prometheus")
    # The secret is there in the container alone.
    secret, config = tmp_path / "key", folder / "prometheus.yml"
    secret.touch()
    config.write_text(config.read_text().replace("/run/secrets/prometheus_key", str(secret)))
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

"""What a service says of itself in Prometheus's text format."""

import httpx


def scraped(url: str) -> dict[str, float]:
    """GET /metrics: values by name with labels, as in `srp4ctr_answers_total{tier="full"}`."""
    lines = httpx.get(f"{url}/metrics").raise_for_status().text.splitlines()
    return {
        name: float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    }

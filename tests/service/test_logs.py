"""Log lines: one spelling of JSON, whoever logs."""

import json
import subprocess
import sys

import orjson

PROGRAM = r"""
import logging, structlog
from srp4ctr_service import logs

logs.configure("info")
log, other = structlog.get_logger(), logging.getLogger("uvicorn.error")
log.info("served", requests=2, name="b\u00fccher")
other.info("served %d of b\u00fccher", 2)
log.warning("not_read", path="a\udcff", size=2**70)
other.warning("not read: %s", "a\udcff")
for one in (log, other):
    try:
        raise OSError("full")
    except OSError:
        one.exception("not written")
log.debug("left out")
other.debug("left out")
"""


def test_our_lines_and_those_of_libraries_are_spelt_alike():
    """One compact object a line with event, level and time; text that is no UTF-8, and what failed, can be logged, too."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    lines = done.stdout.splitlines()
    assert not done.stderr
    found = [json.loads(line) for line in lines]
    assert [(one["event"], one["level"]) for one in found] == [
        ("served", "info"),
        ("served 2 of b\u00fccher", "info"),
        ("not_read", "warning"),
        ("not read: a\udcff", "warning"),
        ("not written", "error"),
        ("not written", "error"),
    ]
    assert all(one["timestamp"].endswith("Z") for one in found)
    assert found[2]["path"] == "a\udcff"
    for line, one in zip(lines, found, strict=True):
        if "udcff" not in line.decode():
            assert line == orjson.dumps(one)
        else:
            assert line == json.dumps(one, separators=(",", ":")).encode()
    assert all("OSError: full" in one["exception"] for one in found[4:])

"""Runs locust as a process of its own, so that what it changes in Python's library stays there."""

import os
import subprocess
import sys
from pathlib import Path

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr_loadtest.load.answers import Answers
from srp4ctr_loadtest.load.settings import LoadSettings

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
FAILED = 1
"""Locust's exit code where it has run and something failed."""
MORE_S = 120.0
"""For locust to start and to end."""
LAST_WORDS = 3000


def closed_loop(url: str, settings: LoadSettings, population: Path | None, folder: Path) -> Answers:
    """A run of locust against that address; what is written meanwhile is in the folder. Srp4ctrError where it does not run."""
    result = folder / "closed-loop.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--host", url, "--headless"]
    command += ["--only-summary", "--loglevel", "WARNING", "--answers", str(result)]
    limit_s = settings.seconds + settings.stop_s + MORE_S
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **settings.variables(url=None, population=population)},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Srp4ctrError(f"locust did not end in {limit_s:.0f} s") from error
    if done.returncode not in (0, FAILED) or not result.exists():
        raise Srp4ctrError(
            f"locust ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-LAST_WORDS:]}"
        )
    return Answers.read(result)

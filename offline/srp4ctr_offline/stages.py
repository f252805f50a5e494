"""Runs `srp4ctr` commands one after another, and leaves out what is done already."""

import hashlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import srp4ctr
import srp4ctr_offline
from srp4ctr.runtime.serving import COMMAND
from srp4ctr_offline.config import AFTER_TRAINING, RunConfig
from srp4ctr_offline.run import write_json


class Stages:
    """Remembers in a file what each command was last run on, what it left, and how long it took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each command when it last ran."""
        return {name: stage["seconds"] for name, stage in self._done.items()}

    def run(self, command: list[str], inputs: str | None = None, output: Path | None = None) -> None:
        """Run a command; it is left out where `inputs` are the same and `output` is as it was left.

        Ends this process with the command's exit code where that is not 0.
        """
        name = command[0]
        on = {"inputs": inputs, "output": _mark(output)}
        if on["output"] is not None and on == self._done.get(name, {}).get("on"):
            print(f"\n== srp4ctr {' '.join(command)}: unchanged, {self.seconds[name]:.0f} s when it ran")
            return
        print(f"\n== srp4ctr {' '.join(command)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([*COMMAND, *command], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        seconds = round(time.monotonic() - began, 1)
        self._done[name] = {"seconds": seconds, "on": {"inputs": inputs, "output": _mark(output)}}
        write_json(self._path, self._done)


def hash_of_code_and(config: RunConfig, *files: Path) -> str:
    """A hash of the configuration, the files and our own code, which decide together what the training commands make."""
    sha = hashlib.sha256(config.model_dump_json(exclude=AFTER_TRAINING).encode())
    for package in (srp4ctr, srp4ctr_offline):
        assert package.__file__ is not None
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            sha.update(path.read_bytes())
    for path in files:
        sha.update(path.read_bytes())
    return sha.hexdigest()


def _mark(output: Path | None) -> str | None:
    if output is None or not output.exists():
        return None
    return hashlib.sha256(output.read_bytes()).hexdigest()

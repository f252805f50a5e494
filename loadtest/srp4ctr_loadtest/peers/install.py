"""The peers' environments: `var/peers/<name>`, each made of a requirements file with pinned versions."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from srp4ctr.contract.errors import ServiceNotReady

FOLDER = Path("var/peers")
REQUIREMENTS = Path(__file__).parent / "requirements"
ROOT = Path(__file__).parents[3]
INSTALLED = "installed.txt"
"""Left in a complete environment: the requirements that it was made of."""


def python_of(environment: str, folder: Path) -> Path:
    """The environment's Python; raises ServiceNotReady where it has not been installed as it should be."""
    made = folder / environment / INSTALLED
    if not made.exists() or made.read_text() != _requirements(environment).read_text():
        raise ServiceNotReady(f"not installed; run: python -m srp4ctr_loadtest.peers install {environment}")
    return (folder / environment / "bin" / "python").absolute()


def install(environments: Sequence[str], folder: Path) -> dict[str, str]:
    """Make those that are not there yet, one after the other; gives the end of pip's words for each that failed."""
    failed = {}
    for environment in environments:
        try:
            python_of(environment, folder)
        except ServiceNotReady:
            print(f"installing {environment} into {folder / environment} ...", flush=True)
            said = _make(environment, folder / environment)
            if said:
                failed[environment] = said
                print(f"{environment} cannot be installed here:\n{said}", file=sys.stderr)
    return failed


def _make(environment: str, target: Path) -> str:
    requirements = _requirements(environment)
    python = str(target / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Only what reads a bundle is used of ours, whose dependencies the requirements name.
    ours = ["--no-deps", "--editable", str(ROOT)]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(target)],
        [*pip, "--requirement", str(requirements)],
        [*pip, *ours],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stdout + done.stderr).strip()[-2000:]
    (target / INSTALLED).write_text(requirements.read_text())
    return ""


def _requirements(environment: str) -> Path:
    return REQUIREMENTS / f"{environment}.txt"


def version_of(environment: str | None) -> str:
    """The framework and its version: the first that the environment's requirements name; in ours it is FastAPI."""
    if environment is None:
        return f"fastapi {version('fastapi')}"
    lines = _requirements(environment).read_text().splitlines()
    return next(line for line in lines if not line.startswith("#")).replace("==", " ")

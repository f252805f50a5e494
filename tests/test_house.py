"""The house rules: what may import what, and that the README shows what is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from srp4ctr.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "service", "offline", "loadtest")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a copy of the tree."""
    paths = ":".join(str(folder / package) for package in PACKAGES)
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--config",
        str(folder / "pyproject.toml"),
        "--no-cache",
    ]
    return subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": paths, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("model/srp4ctr/runtime/sessions.py", "import torch", "never imports torch"),
        ("service/srp4ctr_service/app.py", "import srp4ctr.nn.model", "never imports torch"),
        ("model/srp4ctr/contract/keys.py", "import redis", "numpy, pydantic and the standard library"),
        ("model/srp4ctr/contract/keys.py", "import srp4ctr.runtime.bundle", "Imports go one way"),
        ("offline/srp4ctr_offline/run.py", "import srp4ctr_service.settings", "Imports go one way"),
    ],
)
def test_planted_imports_are_noticed(tmp_path, file, line, broken) -> None:
    """import-linter passes on the tree as it is, and names the rule that a planted import breaks."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if (file, line) == ("model/srp4ctr/runtime/sessions.py", "import torch"):
        clean = lint_imports(tmp_path)
        assert clean.returncode == 0, clean.stdout
    path = tmp_path / file
    path.write_text(path.read_text() + f"\n{line}\n")
    found = lint_imports(tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    assert any(broken in one and "BROKEN" in one for one in found.stdout.splitlines()), found.stdout


@pytest.mark.parametrize(
    "module", ["srp4ctr_service.app", "srp4ctr_service.doctor", "srp4ctr_loadtest.bench"]
)
def test_what_serves_loads_no_torch(module) -> None:
    """Importing what serves does not load torch, by whatever way."""
    code = f"import {module}, sys; assert 'torch' not in sys.modules; assert 'srp4ctr.nn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_is_cheap() -> None:
    """`srp4ctr --help` names every command and imports none of the libraries that make a command slow to start."""
    code = (
        "import sys; from srp4ctr.cli import main; main(['--help']); "
        "slow = {'torch', 'numpy', 'pydantic', 'polars', 'fastapi', 'redis'} & set(sys.modules); assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_reads_and_writes(name, capsys) -> None:
    """Each command has a --help that says what it is about."""
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: srp4ctr {name}" in told
    assert "Reads" in told or "reads" in told, told


def test_unknown_commands_end_with_the_usage(capsys) -> None:
    """A command that does not exist ends with exit code 2 and the list of those that do."""
    assert main(["predict"]) == 2
    assert "no command 'predict'" in capsys.readouterr().err


def files() -> set[str]:
    """What is tracked, or would be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return {path for path in listed if (ROOT / path).exists()}


def test_no_file_is_data() -> None:
    """A file of a megabyte is data, or a model, and is not part of the project."""
    assert not [path for path in files() if (ROOT / path).stat().st_size > 1_000_000]


def test_readme_begins_with_the_first_command_and_ends_with_the_tree() -> None:
    """The first command stands in the README's first 25 lines; its tree holds every file, with a comment each."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any("make demo" in line for line in lines[:25])
    start = max(at for at, line in enumerate(lines) if line.startswith("```"))
    tree = lines[max(at for at in range(start) if lines[at].startswith("```")) + 1 : start]
    folders: list[str] = []
    named = set()
    for line in tree:
        text, _, comment = line.partition("#")
        depth = (len(text) - len(text.lstrip())) // 2
        name = text.strip()
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            assert comment.strip(), f"no comment: {line}"
            named.add("".join(folders) + name)
    assert named == files()


def test_onnx_runtime_tells_nobody(tmp_path) -> None:
    """ONNX Runtime's own telemetry is off: it leaves no identifier of the machine, and so has nothing to send."""
    variables = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "import srp4ctr.runtime.sessions, onnxruntime; onnxruntime.get_available_providers()"
    subprocess.run([sys.executable, "-c", code], check=True, env=variables | {"HOME": str(tmp_path)})
    assert not list(tmp_path.rglob("*"))

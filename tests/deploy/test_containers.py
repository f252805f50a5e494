"""Files of the container stack agree with each other and with the code."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from srp4ctr.runtime.settings import ENV_PREFIX, StoreSettings
from srp4ctr_loadtest.load.settings import LoadSettings
from srp4ctr_service import settings

ROOT = Path(__file__).parents[2]
COMPOSE = [path.read_text() for path in sorted(ROOT.glob("docker-compose*.yml"))]
USED = re.compile(r"\$\{(\w+)(?:(:?[-+])([^}]*))?\}")
EXAMPLE = dict(
    line.split("=", 1)
    for line in (ROOT / ".env.example").read_text().splitlines()
    if line and not line.startswith("#")
)


def test_example_explains_every_variable():
    """What compose files read is in .env.example, and nothing else is."""
    used = {name for text in COMPOSE for name, _, _ in USED.findall(text)}
    assert used == set(EXAMPLE)


def test_example_shows_the_defaults():
    """Copying .env.example to .env changes nothing."""
    for text in COMPOSE:
        for name, sign, default in USED.findall(text):
            if sign in (":-", "-") and default != "/dev/null":
                assert EXAMPLE[name] == default, name


def test_stack_sets_only_settings_that_there_are():
    """A container's environment has no variable that nobody reads."""
    kinds = [
        one for one in vars(settings).values() if isinstance(one, type) and issubclass(one, StoreSettings)
    ]
    kinds.append(LoadSettings)
    known = {
        f"{kind.model_config['env_prefix']}{name}".upper() for kind in kinds for name in kind.model_fields
    }
    for text in COMPOSE:
        assert set(re.findall(rf"^ +({ENV_PREFIX}\w+):", text, re.MULTILINE)) <= known


def test_service_image_is_without_torch():
    """What its extras need does not name torch, and each of its packages is pinned."""
    command = [sys.executable, str(ROOT / "deploy/docker/requirements.py"), "service", "traces"]
    wanted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert wanted == project["dependencies"] + extras["service"] + extras["traces"]
    names = {re.split(r"[\[<>=]", one)[0] for one in wanted}
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]
    }
    assert "torch" not in names
    assert names <= pinned


def test_loadtest_image_has_what_the_load_test_imports():
    """Every module of another project that its code names, wherever in it, is of a package that its image installs."""
    line = re.search(
        r"AS build-loadtest\nRUN python requirements\.py (.*?) >", (ROOT / "Dockerfile").read_text()
    )
    assert line is not None
    command = [sys.executable, str(ROOT / "deploy/docker/requirements.py"), *line[1].split()]
    wanted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = {re.split(r"[\[<>=]", one)[0].replace("-", "_") for one in wanted}
    # Of uvicorn[standard].
    names |= {"uvloop"}
    imported = set()
    for path in (ROOT / "loadtest/srp4ctr_loadtest/load").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {one.name.split(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"srp4ctr", "srp4ctr_loadtest"}
    assert {"locust", "polars"} <= others
    assert others <= names


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_accepts_its_configuration(tmp_path):
    """As the gateway would start it, with two replicas."""
    replicas = tmp_path / "replicas.conf"
    replicas.write_text("server 127.0.0.1:8001 max_fails=1 fail_timeout=1s;\nserver 127.0.0.1:8002;\n")
    configuration = tmp_path / "nginx.conf"
    text = (ROOT / "deploy/nginx/nginx.conf").read_text()
    configuration.write_text(text.replace("/tmp/replicas.conf", str(replicas)))
    done = subprocess.run(
        ["nginx", "-t", "-q", "-e", "stderr", "-c", str(configuration)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

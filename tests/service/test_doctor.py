"""`srp4ctr doctor`: what it finds, and what it says to do."""

import os
import shutil
import subprocess
import sys

import pytest

from srp4ctr.contract.errors import BundleError
from srp4ctr.contract.manifest import MANIFEST
from srp4ctr.runtime.bundle import find_bundle
from srp4ctr.runtime.local_redis import LocalRedis
from srp4ctr_service import checks, doctor


@pytest.fixture
def examine(settings, monkeypatch, capsys):
    """Run doctor with these settings; gives its exit code and its screen."""

    def examine(**changed):
        values = {"redis_url": settings.redis_url, "var_dir": settings.var_dir, "namespace": "test"} | changed
        for name in [name for name in os.environ if name.startswith("SRP4CTR_")]:
            monkeypatch.delenv(name)
        for name, value in values.items():
            if value is not None:
                monkeypatch.setenv(f"SRP4CTR_{name.upper()}", str(value))
        code = doctor.main([])
        return code, capsys.readouterr().out

    return examine


def test_all_in_order(first, activate, start, examine):
    """With an active version, its bundle and a running service, all is ok and the exit code is 0."""
    activate(first)
    client = start()
    code, screen = examine(host=client.base_url.host, port=client.base_url.port)
    assert code == 0, screen
    assert "ready to serve" in screen
    assert first.bundle.manifest.fingerprint[:12] in screen
    assert "ready at http://127.0.0.1" in screen
    assert "NO  " not in screen


def test_nothing_active(examine):
    """Without an active version it says which commands make one."""
    code, screen = examine()
    assert code == 1
    assert "srp4ctr activate VERSION" in screen
    assert "not ready to serve: active version" in screen


def test_missing_bundle(store, examine):
    """An active version without its bundle here is found."""
    store.mark_published("elsewhere", "e" * 64, 7)
    store.activate("elsewhere", "e" * 64)
    code, screen = examine()
    assert code == 1
    assert "not ready to serve: bundle" in screen


def test_unreadable_bundle(first, activate, short_folder, examine):
    """A bundle that the system does not let us read is found, with what to do, and not raised."""
    activate(first)
    folder = short_folder / "bundles" / "first"
    shutil.copytree(first.bundle.folder, folder)
    (folder / MANIFEST).unlink()
    # Even for root, whom permissions do not stop.
    (folder / MANIFEST).symlink_to(MANIFEST)
    code, screen = examine(var_dir=short_folder)
    assert code == 1
    assert f"{folder / MANIFEST} cannot be read" in screen
    with pytest.raises(BundleError, match="cannot be read"):
        find_bundle("first", short_folder / "bundles")


@pytest.mark.usefixtures("second")
def test_bundle_of_another_model(store, examine):
    """A bundle that is not of the activated model is found."""
    store.mark_published("second", "a" * 64, 7)
    store.activate("second", "a" * 64)
    code, screen = examine()
    assert code == 1
    assert "is of another model" in screen


def test_lost_states(first, activate, redis_server, examine):
    """An active version whose publishing is no longer declared is found."""
    activate(first)
    with redis_server.client() as client:
        client.delete("test:published:first")
    code, screen = examine()
    assert code == 1
    assert "to do: srp4ctr publish first" in screen


def test_unreachable_redis(redis_server, examine):
    """A Redis that is configured and gone is found, and the remedy names the setting."""
    redis_server.kill()
    code, screen = examine()
    assert code == 1
    assert "correct SRP4CTR_REDIS_URL" in screen


def test_wrong_address(examine):
    """An address of no known form is found, and not raised."""
    code, screen = examine(redis_url="localhost:6379")
    assert code == 1
    assert "must be redis://" in screen


def test_fresh_machine(short_folder, examine):
    """Where nothing has been done yet it says where to begin, and leaves no trace."""
    code, screen = examine(redis_url=None, var_dir=short_folder / "var")
    assert code == 1
    assert "make demo" in screen
    assert not (short_folder / "var").exists()


def test_stopped_local_redis_is_started(short_folder, settings, examine):
    """A local Redis that has been used before is started to be looked at."""
    local = LocalRedis(settings.model_copy(update={"redis_url": None, "var_dir": short_folder / "var"}))
    local.ensure()
    local.stop()
    try:
        code, screen = examine(redis_url=None, var_dir=short_folder / "var")
        assert code == 1
        assert "answers in" in screen
    finally:
        local.stop()


def test_missing_extra_says_how_to_get_it(monkeypatch):
    """A package that is not installed is named with the extra that brings it; only the service's are needed."""

    def version(package):
        return None if package in ("torch", "fastapi") else "1.0"

    monkeypatch.setattr(checks, "_version", version)
    found = {finding.name: finding for finding in checks.packages()}
    assert found["[offline]"].detail == "missing: torch"
    assert found["[offline]"].remedy == "pip install 'srp4ctr[offline]'"
    assert not found["[offline]"].needed
    assert found["[service]"].needed
    assert not found["[service]"].ok
    assert found["[local]"].ok


def test_doctor_needs_no_torch():
    """The whole of doctor runs without torch being imported."""
    code = (
        "from srp4ctr_service import doctor\nimport sys\ndoctor.main([])\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)

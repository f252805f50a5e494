"""`srp4ctr pipeline`: from tables to an active version by one command, and nothing where there is one."""

import pytest

from srp4ctr_offline import pipeline


@pytest.fixture
def variables(monkeypatch, redis_server, short_folder):
    """A var folder and a Redis of the test's own, for this process and its commands."""
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(short_folder))
    monkeypatch.setenv("SRP4CTR_REDIS_URL", redis_server.url)
    return short_folder


def test_pipeline_makes_a_version_active(tiny, variables, tmp_path, store, capfd):
    """Every command runs, the version is active, and is found to be there the next time."""
    config = _short(tiny, tmp_path)
    assert pipeline.main([str(config)]) == 0
    active = store.active()
    assert active is not None
    assert (variables / "bundles" / active.version / "manifest.json").exists()
    assert "nothing to do" not in capfd.readouterr().out
    assert pipeline.main([str(config), "--unless-active"]) == 0
    assert "nothing to do" in capfd.readouterr().out


def test_pipeline_trains_where_the_bundle_is_gone(tiny, variables, tmp_path, store, capfd):
    """A Redis that names a version whose files are lost is no reason to leave the service without a model."""
    store.mark_published("lost-0123", "0" * 16, users=0)
    store.activate("lost-0123", "0" * 16)
    assert pipeline.main([str(_short(tiny, tmp_path)), "--unless-active"]) == 0
    assert "lost-0123 is active, and trained again" in capfd.readouterr().out
    active = store.active()
    assert active.version != "lost-0123"
    assert (variables / "bundles" / active.version / "manifest.json").exists()


def _short(tiny, folder):
    """The small run's configuration with one epoch of each."""
    text = tiny.config_path.read_text()
    for many in ("epochs = 3", "epochs = 4"):
        assert many in text
        text = text.replace(many, "epochs = 1")
    config = folder / "tiny.toml"
    config.write_text(text)
    return config

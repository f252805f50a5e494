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
    text = tiny.config_path.read_text()
    for many in ("epochs = 3", "epochs = 4"):
        assert many in text
        text = text.replace(many, "epochs = 1")
    config = tmp_path / "tiny.toml"
    config.write_text(text)
    assert pipeline.main([str(config)]) == 0
    active = store.active()
    assert active is not None
    assert (variables / "bundles" / active.version / "manifest.json").exists()
    assert "nothing to do" not in capfd.readouterr().out
    assert pipeline.main([str(config), "--unless-active"]) == 0
    assert "nothing to do" in capfd.readouterr().out


@pytest.mark.usefixtures("variables")
def test_pipeline_trains_where_the_bundle_is_gone(tiny, tmp_path, store, capfd):
    """A Redis that names a version whose files are lost is no reason to leave the service without a model."""
    version, fingerprint = tiny.bundle.manifest.version, tiny.bundle.manifest.fingerprint
    store.mark_published(version, fingerprint, users=0)
    store.activate(version, fingerprint)
    config = tmp_path / "tiny.toml"
    config.write_text(tiny.config_path.read_text().replace(str(tiny.config.tables.folder), str(tmp_path)))
    with pytest.raises(SystemExit) as ended:
        pipeline.main([str(config), "--unless-active"])
    # There are no tables to train from here.
    assert ended.value.code == 1
    output = capfd.readouterr()
    assert "trained again" in output.out
    assert "srp4ctr prepare" in output.err

"""The settings reference is that of the code."""

import re
from pathlib import Path

from srp4ctr.runtime import settings as store
from srp4ctr.runtime.settings import ENV_PREFIX, StoreSettings, read_settings
from srp4ctr_service.settings import RefreshSettings, Settings
from srp4ctr_service.settings_document import document

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_reference_is_the_committed_one():
    """docs/settings.md is what the classes say; renew it by: make documents."""
    assert PAGE.read_text() == document()


def test_reference_has_every_setting():
    """Each setting of each command has a line, with a description."""
    lines = PAGE.read_text().splitlines()
    for kind in (StoreSettings, Settings, RefreshSettings):
        for name in kind.model_fields:
            (line, *_) = [one for one in lines if one.startswith(f"| `{ENV_PREFIX}{name.upper()}` |")]
            assert len(re.split(r" \| ", line)[-1]) > 15, name


def test_empty_variable_is_not_set(monkeypatch):
    """A compose file passes on what nobody has set as an empty value."""
    monkeypatch.setenv("SRP4CTR_API_KEYS_FILE", "")
    monkeypatch.setenv("SRP4CTR_DEADLINE_MS", "")
    settings = read_settings(Settings)
    assert settings.api_keys_file is None
    assert settings.deadline_ms == 500


def test_secret_file_gives_a_value(monkeypatch, tmp_path):
    """A file of the setting's name among the container's secrets is read, unless the variable is set."""
    (tmp_path / "srp4ctr_redis_url").write_text("redis://:password@elsewhere:6379\n")
    monkeypatch.delenv("SRP4CTR_REDIS_URL", raising=False)
    monkeypatch.setitem(store.StoreSettings.model_config, "secrets_dir", tmp_path)
    assert read_settings(StoreSettings).redis_url == "redis://:password@elsewhere:6379"
    monkeypatch.setenv("SRP4CTR_REDIS_URL", "redis://here")
    assert read_settings(StoreSettings).redis_url == "redis://here"

"""Where Redis is and how long to wait for it: the settings that every command shares."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class StoreSettings(BaseSettings):
    """Read once from `SRP4CTR_...` variables by each command; nothing else reads the environment."""

    model_config = SettingsConfigDict(env_prefix="SRP4CTR_", frozen=True)

    redis_url: str | None = Field(
        default=None,
        description="redis://, rediss:// or unix:// address. Unset: a redis-server of our own under var_dir",
    )
    namespace: str = Field(default="srp4ctr", pattern=r"^[A-Za-z0-9_.-]+$", description="prefix of every key")
    redis_connect_timeout_ms: int = Field(default=500, gt=0, description="limit for connecting, milliseconds")
    redis_read_timeout_ms: int = Field(default=2000, gt=0, description="limit for one answer, milliseconds")
    var_dir: Path = Field(default=Path("var"), description="folder of runs, bundles, data and the local Redis")

    @property
    def bundles_dir(self) -> Path:
        """Folder of the exported bundles, one sub-folder a version."""
        return self.var_dir / "bundles"

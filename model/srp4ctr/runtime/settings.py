"""Where Redis is and how long to wait for it: the settings that every command shares."""

from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from srp4ctr.contract.errors import ConfigError
from srp4ctr.contract.events import Retention

ENV_PREFIX = "SRP4CTR_"
SECONDS_A_DAY = 86_400
SECRETS = Path("/run/secrets")
"""Where Docker and Kubernetes put secrets: a file `srp4ctr_redis_url` there is as good as the variable, unless both are set."""


class StoreSettings(BaseSettings):
    """Read once from `SRP4CTR_...` variables, or from files of these names, by each command; nothing else reads the environment."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        # A variable without a value is how a compose file says that nobody has set it.
        env_ignore_empty=True,
        # It need not be there, but naming a folder that is not there is warned of.
        secrets_dir=SECRETS if SECRETS.is_dir() else None,
        frozen=True,
    )

    redis_url: str | None = Field(
        default=None,
        description="redis://, rediss:// or unix:// address. Unset: a redis-server of our own under var_dir",
    )
    namespace: str = Field(default="srp4ctr", pattern=r"^[A-Za-z0-9_.-]+$", description="prefix of every key")
    redis_connect_timeout_ms: int = Field(default=500, gt=0, description="limit for connecting, milliseconds")
    redis_read_timeout_ms: int = Field(default=2000, gt=0, description="limit for one answer, milliseconds")
    local_redis_start_timeout_ms: int = Field(
        default=30_000,
        gt=0,
        description="limit for a Redis of our own to start and load its data, milliseconds",
    )
    var_dir: Path = Field(
        default=Path("var"),
        description="folder of runs, bundles and the local Redis; tables are where a configuration names them",
    )

    history_events: int = Field(
        default=128,
        ge=2,
        le=4096,
        description="events of a user that are kept in Redis; at least as many as any model's max_events",
    )
    history_ttl_days: float = Field(
        default=0,
        ge=0,
        description="days after a user's last event when the user's history is removed; 0 keeps it for ever",
    )
    state_ttl_days: float = Field(
        default=0,
        ge=0,
        description="days after which a state that nobody has written again is removed; at least as many as histories are "
        "kept, so that no active user loses it. 0 keeps it for ever",
    )

    @model_validator(mode="after")
    def _states_outlive_histories(self) -> Self:
        # A state that goes first leaves a user whom Redis knows to be scored as nobody until the next event.
        if self.state_ttl_days and not 0 < self.history_ttl_days <= self.state_ttl_days:
            kept = f"{self.history_ttl_days:g} days" if self.history_ttl_days else "for ever"
            raise ValueError(
                f"SRP4CTR_STATE_TTL_DAYS is {self.state_ttl_days:g}, and SRP4CTR_HISTORY_TTL_DAYS keeps histories {kept}: states "
                "would go while their users' histories are there; give states at least as long, or 0"
            )
        return self

    @property
    def retention(self) -> Retention:
        """What is kept of a user's history."""
        return Retention(self.history_events, round(SECONDS_A_DAY * self.history_ttl_days))

    @property
    def state_ttl_s(self) -> int:
        """Seconds that a state lives; 0 for ever."""
        return round(SECONDS_A_DAY * self.state_ttl_days)

    @property
    def bundles_dir(self) -> Path:
        """Folder of the exported bundles, one sub-folder a version."""
        return self.var_dir / "bundles"

    @property
    def runs_dir(self) -> Path:
        """Folder of the offline runs, one sub-folder a configuration."""
        return self.var_dir / "runs"


S = TypeVar("S", bound=StoreSettings)


def read_settings(kind: type[S], **overrides: Any) -> S:
    """The settings of that kind, from `overrides` (None: not given) and the environment.

    Raises ConfigError, which names the variables that are wrong.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return kind(**given)
    except ValidationError as error:
        wrong = "; ".join(
            # What is wrong between settings is at no place, and names them itself.
            f"{ENV_PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" if e["loc"] else e["msg"]
            for e in error.errors()
        )
        raise ConfigError(wrong) from None

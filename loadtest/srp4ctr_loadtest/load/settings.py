"""Everything about a load test that one may choose, by option or by environment variable."""

import argparse
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from srp4ctr.contract.errors import ConfigError
from srp4ctr.contract.http_types import MAX_CANDIDATES

ENV_PREFIX = "SRP4CTR_LOADTEST_"
Shape = Literal["steady", "ramp", "step", "spike"]


class LoadSettings(BaseSettings):
    """Read once, by the command from its options and `SRP4CTR_LOADTEST_...` variables, by locust from the variables alone."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True)

    url: str | None = Field(
        default=None,
        pattern=r"^http://[^/]+/?$",
        description="http:// address of the service. Unset: one is started, with a copy of the Redis that the other settings name",
    )
    metrics_url: str | None = Field(
        default=None,
        description="GET /metrics of the replicas, for their CPU and memory: each address that the name has is asked. Unset: that "
        "of the service's own address",
    )
    api_key_file: Path | None = Field(
        default=None,
        description="file with the API key that the service wants, on its first line; may be empty",
    )
    population: Path | None = Field(
        default=None,
        description="file with users, items and feature values to ask with, as --write-population makes it. Unset: those of the "
        "active version, by Redis and var/bundles",
    )
    replay: Path | None = Field(
        default=None,
        description="requests to send instead of made-up ones, over and over in their order: records of the service or "
        "requests (JSON lines; a file, or a folder of *.jsonl), or impressions (Parquet)",
    )
    shape: Shape = Field(
        default="steady",
        description="users over time: steady, ramp (rising to the end), step (a quarter more each quarter of the time), or "
        "spike (a quarter of the users, all of them in the middle fifth of the time, a quarter again)",
    )
    users: int = Field(default=16, ge=1, description="users of the closed loop, at most")
    seconds: float = Field(default=60, ge=0, description="length of the closed loop; 0: none")
    think_ms: float = Field(
        default=20, ge=0, description="mean time between an answer and the user's next request, milliseconds"
    )
    candidates: str = Field(
        default="50-2000",
        pattern=r"^\d+-\d+$|^\d+(,\d+)*$",
        description="candidates of a request: LEAST-MOST is log-normal between the two, A,B,C is one of these",
    )
    candidates_median: float = Field(default=200, ge=1, description="median of the log-normal")
    candidates_sigma: float = Field(default=0.8, gt=0, description="sigma of the log-normal")
    user_skew: float = Field(default=1.0, ge=0, description="exponent of Zipf's law for users; 0: all alike")
    item_skew: float = Field(default=0.8, ge=0, description="exponent of Zipf's law for items")
    cold_share: float = Field(default=0.05, ge=0, le=1, description="requests for users whom nobody knows")
    events_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="answers after which the user acts on some of the best candidates: POST /events. These events are stored "
        "under the users of the service's Redis; 0 stores none",
    )
    alone_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="requests that repeat what some known users were asked one after the other before the load: the scores must be "
        "those that each was answered alone. These users do not act. Of a log, the first requests are asked before. 0: nobody is",
    )
    impressions: bool = Field(
        default=False,
        description="whenever the user acts, the best candidates are reported as shown: POST /impressions, for `srp4ctr monitor`",
    )
    deadline_ms: float | None = Field(
        default=None, gt=0, description="of each request, milliseconds. Unset: the service's own"
    )
    timeout_s: float = Field(default=10, gt=0, description="a request is given up after it")
    accept_refusals: bool = Field(
        default=False,
        description="429, 503 and 504 with a problem, connections that end without an answer, and events that a balancer sent "
        "twice are counted but are no failures: for runs in which replicas are killed",
    )
    rates: str = Field(
        default="50,100",
        pattern=r"^$|^\d+(\.\d+)?(,\d+(\.\d+)?)*$",
        description="requests a second of the open loops, one after the other; empty for none",
    )
    rank_share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="requests of the open loops that are POST /rank; the rest is POST /score",
    )
    batch_share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="requests of the open loops that are POST /score/batch, of four users each",
    )
    rate_s: float = Field(default=10, gt=0, description="seconds of each of them")
    connections: int = Field(default=64, ge=1, description="connections of an open loop, at most")
    budget_ms: float = Field(
        default=20, gt=0, description="what the p99 may be at the saturation point, milliseconds"
    )
    search_s: float = Field(
        default=5, ge=0, description="seconds of each step of the search for it; 0: no search"
    )
    confirm_s: float = Field(
        default=30, ge=0, description="seconds for which the rate that was found must be kept; 0: not tried"
    )
    search_from: float = Field(default=25, gt=0, description="requests a second that the search begins with")
    search_to: float = Field(default=10_000, gt=0, description="requests a second that it ends with at most")
    out: Path = Field(
        default=Path("docs/benchmarks"),
        description="folder for load.json, load.html and the pictures of load/",
    )
    seed: int = Field(default=0, ge=0, description="of all that is random")

    @field_validator("candidates")
    @classmethod
    def _possible(cls, value: str) -> str:
        counts = [int(one) for one in value.replace("-", ",").split(",")]
        if min(counts) < 1 or max(counts) > MAX_CANDIDATES or ("-" in value and counts[0] > counts[1]):
            raise ValueError(f"must be of 1 to {MAX_CANDIDATES}, the least before the most")
        return value

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.rank_share + self.batch_share > 1:
            raise ValueError("rank_share and batch_share must be 1 together at most")
        return self

    @property
    def open_rates(self) -> list[float]:
        """`rates` as numbers."""
        return [float(one) for one in self.rates.split(",") if one]

    @property
    def stop_s(self) -> float:
        """How long a user of locust may take in the end: for the request under way, and for telling what was shown and done."""
        return 3 * self.timeout_s + 1

    def headers(self) -> dict[str, str]:
        """What every request has to have. Raises ConfigError where the key's file cannot be read."""
        if self.api_key_file is None:
            return {}
        try:
            key = self.api_key_file.read_text().split("\n", 1)[0].strip()
        except OSError as error:
            raise ConfigError(f"{self.api_key_file} cannot be read: {error.strerror}") from error
        return {"authorization": f"Bearer {key}"} if key else {}

    def variables(self, **others: object) -> dict[str, str]:
        """The environment in which another process reads the same settings, but for `others`."""
        values = self.model_dump(mode="json") | others
        return {variable(name): str(value) for name, value in values.items() if value is not None}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{ENV_PREFIX}{name.upper()}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option a setting."""
    for name, field in LoadSettings.model_fields.items():
        default = "unset" if field.default is None else field.default
        about = f"{field.description} (default: {default}; {variable(name)})".replace("%", "%%")
        option = f"--{name.replace('_', '-')}"
        if field.annotation is bool:
            parser.add_argument(option, action="store_true", default=None, help=about)
        else:
            parser.add_argument(option, metavar="VALUE", help=about)


def read_load_settings(given: dict[str, Any] | None = None) -> LoadSettings:
    """The settings, from options that were given (None: not given) and the environment; ConfigError names what is wrong."""
    values = {name: value for name, value in (given or {}).items() if value is not None}
    try:
        return LoadSettings(**values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"{wrong} (option or {ENV_PREFIX}... variable)") from None

"""Redis clients with limits of their own for connecting and for reading, and few, short retries."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from srp4ctr.contract.errors import ConfigError, StoreError, StoreUnavailable
from srp4ctr.runtime.settings import StoreSettings

JOB_RETRIES = 3
SERVICE_RETRIES = 1
SERVICE_CONNECTIONS = 16

SCAN = 1000
"""Keys that Redis looks at in one go."""

FORMS = "redis://[user:password@]host[:port][/db], rediss://... or unix:///path/to/socket"


def connect(settings: StoreSettings, url: str, retries: int = JOB_RETRIES) -> redis.Redis:
    """A client for jobs, which rather wait a moment than fail; connects on its first command.

    Raises ConfigError where the address is wrong.
    """
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), retries)
    with _address_errors():
        _check(url)
        client: redis.Redis = redis.Redis.from_url(url, **_options(settings), retry=retry)
        # Makes no connection yet, but finds options that no connection knows.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    return client


def exist(client: redis.Redis, keys: Sequence[str]) -> list[bool]:
    """Whether each key is there: mostly all are or none is, which one command tells; only else are they asked for one by one."""
    found = []
    with store_errors():
        for at in range(0, len(keys), SCAN):
            some = keys[at : at + SCAN]
            there = client.exists(*some)
            if there in (0, len(some)):
                found += [bool(there)] * len(some)
                continue
            pipeline = client.pipeline(transaction=False)
            for key in some:
                pipeline.exists(key)
            found += map(bool, pipeline.execute())
    return found


def scan_pages(client: redis.Redis, pattern: str) -> Iterator[list[bytes]]:
    """Keys that fit, as Redis finds them: after each look at about SCAN keys of all there are, those that fit, or none."""
    cursor = 0
    while True:
        found: Any = client.scan(cursor, match=pattern, count=SCAN)
        cursor, keys = found
        yield keys
        if cursor == 0:
            return


def connect_async(settings: StoreSettings, url: str) -> redis.asyncio.Redis:
    """A client for the service: one retry at once, for a connection that the server has closed meanwhile.

    It has no limit for reading, since AsyncStateStore puts the caller's own around every call: with a second one,
    redis-py would start a task for each command. Who finds all connections in use waits for one, within that limit.
    Raises ConfigError where the address is wrong.
    """
    retry = AsyncRetry(NoBackoff(), SERVICE_RETRIES)
    options = {**_options(settings), "socket_timeout": None}
    with _address_errors():
        _check(url)
        pool: redis.asyncio.BlockingConnectionPool = redis.asyncio.BlockingConnectionPool.from_url(
            url, **options, retry=retry, max_connections=SERVICE_CONNECTIONS, timeout=None
        )
        pool.connection_class(**pool.connection_kwargs)
    return redis.asyncio.Redis.from_pool(pool)


def read_pool(settings: StoreSettings, url: str) -> redis.asyncio.ConnectionPool:
    """Makes the connections over which a service reads user states; see StateReads, which has the limits.

    RESP 3, in which Redis can say between its answers what has changed. Raises ConfigError where the address is wrong.
    """
    options = {**_options(settings), "socket_timeout": None, "protocol": 3}
    with _address_errors():
        _check(url)
        pool: redis.asyncio.ConnectionPool = redis.asyncio.ConnectionPool.from_url(url, **options)
        pool.connection_class(**pool.connection_kwargs)
    return pool


def shown(url: str) -> str:
    """The address as it may be printed and logged: without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn whatever redis-py and the network raise into StoreUnavailable, and keys of another kind into StoreError."""
    try:
        yield
    except redis.ResponseError as error:
        if "WRONGTYPE" in str(error):
            raise StoreError(f"something else is stored there: {error}") from error
        raise StoreUnavailable(f"Redis: {error}") from error
    except (redis.RedisError, TimeoutError, OSError) as error:
        raise StoreUnavailable(f"Redis: {str(error) or type(error).__name__}") from error


@contextmanager
def _address_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ConfigError(f"SRP4CTR_REDIS_URL: {error}; it must be {FORMS}") from None


def _check(url: str) -> None:
    # redis-py would take these for database 0, and for a socket without a name.
    parts = urlsplit(url)
    if (
        parts.scheme in ("redis", "rediss")
        and not parts.path.strip("/").isdecimal()
        and parts.path.strip("/")
    ):
        raise ValueError(f"{parts.path!r} is not the number of a database")
    if parts.scheme == "unix" and not parts.path:
        raise ValueError("the path of the socket is missing")


def _options(settings: StoreSettings) -> dict[str, Any]:
    return {
        "socket_connect_timeout": settings.redis_connect_timeout_ms / 1000,
        "socket_timeout": settings.redis_read_timeout_ms / 1000,
        # Nothing here needs RESP3, whose handshake costs a connection two more round trips.
        "protocol": 2,
    }

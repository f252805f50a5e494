"""Redis clients: addresses and limits."""

import asyncio

import pytest
import redis

from srp4ctr.contract.errors import ConfigError, StoreUnavailable
from srp4ctr.runtime.redis_client import connect, connect_async, shown, store_errors
from srp4ctr.runtime.settings import StoreSettings, read_settings


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://host:port",
        "redis://host/first",
        "redis://host?no_such_option=1",
        "unix://",
    ],
)
@pytest.mark.parametrize("make", [connect, connect_async])
def test_wrong_address_names_the_variable(url, make):
    """An address that cannot work is refused before any connection, by the name of its variable."""
    with pytest.raises(ConfigError, match="SRP4CTR_REDIS_URL"):
        make(StoreSettings(), url)


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://h:1/2", "rediss://u:p@h", "unix:///run/redis.sock?db=1"]
)
@pytest.mark.parametrize("make", [connect, connect_async])
def test_right_addresses_are_taken(url, make):
    """Every documented form of an address makes a client, without a connection."""
    make(StoreSettings(), url)


def test_shown_address_has_no_password():
    """An address that is printed or logged shows neither user nor password."""
    assert shown("rediss://user:secret@host:6380/1?ssl_password=x") == "rediss://host:6380/1"


def test_limits_come_from_the_settings():
    """Connecting and reading have limits of their own."""
    settings = StoreSettings(redis_connect_timeout_ms=100, redis_read_timeout_ms=300)
    options = connect(settings, "redis://h").connection_pool.connection_kwargs
    assert options["socket_connect_timeout"] == 0.1
    assert options["socket_timeout"] == 0.3


def test_server_that_hangs_is_unavailable(redis_server):
    """A server that accepts a command and never answers ends in StoreUnavailable, not in a hang."""
    client = connect(StoreSettings(redis_read_timeout_ms=50), redis_server.url)
    with client:
        client.ping()
        redis_server.pause()
        with pytest.raises(StoreUnavailable), store_errors():
            client.ping()


def test_connection_closed_meanwhile_is_renewed(redis_server):
    """A restart of Redis between two commands is not seen by the caller."""

    async def scenario():
        async with connect_async(StoreSettings(), redis_server.url) as client:
            await client.set("a", "1")
            redis_server.kill()
            redis_server.start()
            return await client.get("a")

    assert asyncio.run(scenario()) == b"1"


def test_refused_command_is_unavailable(redis_server):
    """A Redis that refuses a command, being full, is unavailable and says why."""
    with connect(StoreSettings(), redis_server.url) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="maxmemory"), store_errors():
            client.set("a", "1")
        assert isinstance(client, redis.Redis)


def test_error_without_a_text_is_named():
    """An error that says nothing is told by its name."""
    with pytest.raises(StoreUnavailable, match="Redis: TimeoutError"), store_errors():
        raise TimeoutError


def test_all_connections_in_use_are_waited_for(redis_server):
    """Many more commands at a time than there are connections are all answered."""

    async def scenario():
        async with connect_async(StoreSettings(), redis_server.url) as client:
            await client.set("a", "1")
            return await asyncio.gather(*(client.get("a") for _ in range(600)))

    assert asyncio.run(scenario()) == [b"1"] * 600


def test_wrong_setting_names_its_variable(monkeypatch):
    """A setting of the wrong type is a ConfigError that names the environment variable."""
    monkeypatch.setenv("SRP4CTR_REDIS_READ_TIMEOUT_MS", "soon")
    with pytest.raises(ConfigError, match="SRP4CTR_REDIS_READ_TIMEOUT_MS"):
        read_settings(StoreSettings)

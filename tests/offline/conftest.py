"""A store in a Redis of the test's own."""

import pytest

from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import StateStore


@pytest.fixture
def store(redis_server) -> StateStore:
    """An empty store."""
    return StateStore(connect(StoreSettings(), redis_server.url), Keys())

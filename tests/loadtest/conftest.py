"""What tests of benchmarks share: the small run, published and active."""

import pytest

from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_loadtest.peers.workload import Workload
from srp4ctr_offline.publish import publish


@pytest.fixture(scope="module")
def workload(tiny, shared_redis_server, request):
    """The small run published and active, as `Workload.active` finds it."""
    namespace = request.module.__name__.rpartition(".")[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRP4CTR_VAR_DIR", str(tiny.bundles.parent))
        patch.setenv("SRP4CTR_REDIS_URL", shared_redis_server.url)
        patch.setenv("SRP4CTR_NAMESPACE", namespace)
        with shared_redis_server.client() as client:
            store = StateStore(client, Keys(namespace))
            publish(tiny.bundle, tiny.prepared, store)
            store.activate(tiny.bundle.manifest.version, tiny.bundle.manifest.fingerprint)
        yield Workload.active()

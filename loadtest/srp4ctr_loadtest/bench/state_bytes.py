"""Bytes that Redis takes for a user's state, as MEMORY USAGE has them."""

from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import DType
from srp4ctr.runtime.redis_client import connect
from srp4ctr_loadtest.bench.findings import Finding, Part
from srp4ctr_loadtest.bench.place import Place
from srp4ctr_loadtest.freshness.sizes import memory_usage, retyped

AIMS: tuple[tuple[DType, float], ...] = (("float16", 2700.0), ("int8", 1400.0))
KEPT_S = 60


def measure(place: Place) -> Part:
    """The published states as they are, and the same in each type of numbers, which are written for a moment."""
    workload = place.workload
    subject, keys = workload.subject, Keys(workload.settings.namespace)
    version, users = subject.version, subject.users[: len(subject.states)]
    with connect(workload.settings, subject.redis_url) as client:
        about = f"Redis {client.info('server')['redis_version']}, {client.info('memory')['mem_allocator']}"
        published = memory_usage(client, [keys.state(version, user) for user in users])
        found = []
        for dtype, aim in AIMS:
            _, packed = retyped(subject.bundle.manifest, dtype, subject.states)
            # Of no version, and with names as long as the real ones.
            names = [keys.state("-" * len(version), user) for user in users]
            try:
                for name, state in zip(names, packed, strict=True):
                    client.set(name, state, ex=KEPT_S)
                used = memory_usage(client, names)
            finally:
                client.delete(*names)
            found.append(
                Finding(f"state.{dtype}", f"a user's state in {dtype} ({about})", used, "bytes", aim)
            )
    return Part(found, detail={"published": published})

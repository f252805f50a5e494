"""What would be picked instead, in the same run: FastAPI as its documentation has it, and Triton where it is installed."""

from srp4ctr_loadtest.bench.findings import Part
from srp4ctr_loadtest.bench.kept import of_peers
from srp4ctr_loadtest.bench.place import Place
from srp4ctr_loadtest.peers.catalogue import PEERS
from srp4ctr_loadtest.peers.install import FOLDER
from srp4ctr_loadtest.peers.measure import Plan
from srp4ctr_loadtest.peers.run import compare

NAMES = ("fastapi", "fastapi-plain", "triton-binary", "triton-plain")
CANDIDATES = (100, 500)
REQUESTS = 800


def measure(place: Place) -> Part:
    """Requests a second of ours over theirs, states read from Redis; those that are not there are left out, and said to be."""
    peers = [
        peer
        for peer in PEERS
        if peer.name in NAMES and (peer.environment is None or (FOLDER / peer.environment).exists())
    ]
    # Of closed loops alone: latencies take longer than this, and have a command of their own.
    plan = Plan(place.scaled(REQUESTS), None, place.server_core, place.loader_core)
    results = compare(place.workload, peers, FOLDER, plan, CANDIDATES)
    absent = [name for name in NAMES if name not in {peer.name for peer in peers}]
    wrong = [f"{row.server}: {row.error}" for row in results.rows if row.error is not None]
    said = [f"Not installed, and so not measured: {', '.join(absent)} (make bench-peers)"] if absent else []
    return Part(of_peers(results, "beside"), "\n".join([*said, *wrong]))

"""Who is compared: each peer's name, its server's module, its environment, and how it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from srp4ctr.contract.errors import ConfigError
from srp4ctr_loadtest.peers.protocols import PLAIN, V2_BINARY, V2_JSON, Protocol

SERVERS = "srp4ctr_loadtest.peers.servers"


@dataclass(frozen=True)
class Peer:
    """One server to compare with.

    `environment` is the requirements file's name and the folder's below `var/peers`; None is our own environment, which
    has it. `plain_graph`: it runs the scorer as one exports it who folds nothing, and so stands for what one has without
    our bundles; the others run our bundle's own graph.
    """

    name: str
    title: str
    module: str
    environment: str | None
    protocol: Protocol
    plain_graph: bool = False


PEERS = (
    Peer("fastapi", "FastAPI, naive", "fastapi_server", None, PLAIN),
    Peer("fastapi-plain", "FastAPI, naive, plain graph", "fastapi_server", None, PLAIN, plain_graph=True),
    Peer("triton-json", "Triton, JSON", "triton_server", "triton", V2_JSON),
    Peer("triton-binary", "Triton, binary", "triton_server", "triton", V2_BINARY),
    Peer(
        "triton-plain", "Triton, binary, plain graph", "triton_server", "triton", V2_BINARY, plain_graph=True
    ),
    Peer("mlserver", "MLServer", "mlserver_server", "mlserver", V2_JSON),
    Peer("bentoml", "BentoML", "bentoml_server", "bentoml", PLAIN),
    Peer("ray", "Ray Serve", "ray_server", "ray", PLAIN),
    Peer("litserve", "LitServe", "litserve_server", "litserve", PLAIN),
)

ENVIRONMENTS = tuple(dict.fromkeys(peer.environment for peer in PEERS if peer.environment is not None))


def chosen(names: Sequence[str]) -> list[Peer]:
    """The peers of these names or environments, all where none is named; raises ConfigError for others."""
    known = {peer.name for peer in PEERS} | set(ENVIRONMENTS)
    unknown = sorted(set(names) - known)
    if unknown:
        raise ConfigError(f"no peer is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [peer for peer in PEERS if not names or peer.name in names or peer.environment in names]

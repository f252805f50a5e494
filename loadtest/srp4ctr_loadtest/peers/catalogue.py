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
    has it. `whole_graph`: it runs item.onnx at every request, having no table of item vectors.
    """

    name: str
    title: str
    module: str
    environment: str | None
    protocol: Protocol
    whole_graph: bool = False


PEERS = (
    Peer("fastapi", "FastAPI, naive", "fastapi_server", None, PLAIN),
    Peer("fastapi-whole", "FastAPI, naive, whole graph", "fastapi_server", None, PLAIN, whole_graph=True),
    Peer("triton-json", "Triton, JSON", "triton_server", "triton", V2_JSON),
    Peer("triton-binary", "Triton, binary", "triton_server", "triton", V2_BINARY),
    Peer(
        "triton-whole", "Triton, binary, whole graph", "triton_server", "triton", V2_BINARY, whole_graph=True
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

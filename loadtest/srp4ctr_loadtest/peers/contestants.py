"""Everyone who answers over HTTP: our own service and the peers, each started on a core of its own."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

import psutil

from srp4ctr.runtime.serving import free_port, running_service
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.metrics import scraped
from srp4ctr_loadtest.peers.aims import OURS, OURS_NEAR
from srp4ctr_loadtest.peers.asking import answers
from srp4ctr_loadtest.peers.catalogue import SERVERS, Peer
from srp4ctr_loadtest.peers.install import python_of
from srp4ctr_loadtest.peers.processes import Tree, module_command, running
from srp4ctr_loadtest.peers.protocols import PLAIN, Protocol, WrongAnswer
from srp4ctr_loadtest.peers.workload import Workload


@dataclass(frozen=True)
class Running:
    """A server that answers; `check` raises WrongAnswer where it tells of answers that were cheaper than asked for."""

    url: str
    tree: Tree
    check: Callable[[], None]


class Start(Interface):
    """Starts a server on a core, and ends it on leaving."""

    def __call__(self, core: int) -> AbstractContextManager[Running]: ...


@dataclass(frozen=True)
class Contestant:
    """A server by its name in results and its title for people, how it is asked, and how it is started."""

    name: str
    title: str
    protocol: Protocol
    start: Start


def own_services(workload: Workload) -> list[Contestant]:
    """Our service with every state read from Redis, and with its near cache as it comes."""

    def contestant(name: str, title: str, near_cache_users: int | None) -> Contestant:
        @contextlib.contextmanager
        def start(core: int) -> Iterator[Running]:
            with contextlib.ExitStack() as stack:
                variables = workload.service_variables(near_cache_users)
                with on_core(core):
                    service = stack.enter_context(running_service(free_port(), variables))
                tree = Tree(psutil.Process(service.pid))
                tree.check_core(core)
                yield Running(service.url, tree, lambda: check_in_full(service.url))

        return Contestant(name, title, PLAIN, start)

    return [
        contestant(OURS, "srp4ctr", 0),
        contestant(OURS_NEAR, "srp4ctr, near cache", None),
    ]


def check_in_full(url: str) -> None:
    """Raise WrongAnswer where our service's metrics tell of any answer but the model's, from the user's state."""
    cheaper = {
        name: value
        for name, value in scraped(url).items()
        if name.startswith(("srp4ctr_degraded_total", 'srp4ctr_answers_total{tier="prior"')) and value
    }
    if cheaper:
        raise WrongAnswer(f"cheaper than asked: {cheaper}")


def peer_contestant(peer: Peer, workload: Workload, folder: Path) -> Contestant:
    """A peer with its environment, its files and its log below `folder`; to start it raises ServiceNotReady."""

    @contextlib.contextmanager
    def start(core: int) -> Iterator[Running]:
        python = None if peer.environment is None else python_of(peer.environment, folder)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        own = (folder / "served" / peer.name).absolute()
        own.mkdir(parents=True, exist_ok=True)
        given = workload.given(port, own, plain_graph=peer.plain_graph)
        question = workload.questions(1)[0]
        command = module_command(python, f"{SERVERS}.{peer.module}")
        log = folder / "logs" / f"{peer.name}.log"

        def ready() -> bool:
            return answers(url, peer.protocol, question)

        with running(command, given.variables(), core, log, ready) as tree:
            yield Running(url, tree, lambda: None)

    return Contestant(peer.name, peer.title, peer.protocol, start)

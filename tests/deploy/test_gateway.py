"""The gateway before replicas that are killed, that hang, and that come: a real nginx, and processes that answer their address."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from srp4ctr.runtime.serving import free_port

NGINX = Path(__file__).parents[2] / "deploy/nginx"
TOOLS = ("nginx", "curl")

pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"{' or '.join(TOOLS)} is missing")

REPLICA = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = sys.argv[1].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


class Gateway:
    """The gateway's script with a name server and a configuration of its own, and the replicas that it finds."""

    def __init__(self, folder: Path) -> None:
        self.port, self.replica_port = free_port(), free_port()
        self.replicas: dict[str, subprocess.Popen[bytes]] = {}
        self._addresses = folder / "addresses"
        self._addresses.touch()
        getent = folder / "getent"
        getent.write_text(f"#!/bin/sh\nsed 's/$/ STREAM service/' '{self._addresses}'\n")
        getent.chmod(0o755)
        for name in ("gateway.sh", "nginx.conf"):
            text = (NGINX / name).read_text().replace("/tmp/", f"{folder}/")
            (folder / name).write_text(text.replace("listen 8000", f"listen {self.port}"))
        environment = os.environ | {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "SERVICE_PORT": str(self.replica_port),
            "NGINX_CONFIGURATION": str(folder / "nginx.conf"),
            "TMPDIR": str(folder),
        }
        self.process = subprocess.Popen(["sh", str(folder / "gateway.sh")], env=environment)

    def start(self, *addresses: str) -> None:
        """Replicas at loopback addresses, which the name server knows from now on."""
        for address in addresses:
            command = [sys.executable, "-c", REPLICA, address, str(self.replica_port)]
            self.replicas[address] = subprocess.Popen(command)
        self._addresses.write_text("".join(f"{address}\n" for address in self.replicas))

    def ask(self, limit_s: float = 5.0) -> httpx.Response | None:
        """One question over a connection of its own; None where nothing came in time."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/score", timeout=limit_s)
        except httpx.TransportError:
            return None

    def answering(self, questions: int = 20) -> set[str]:
        """Who answers; a problem's type where nobody does, "nothing" where no answer came within a second."""
        found = set()
        for _ in range(questions):
            answer = self.ask(1.0)
            if answer is None:
                found.add("nothing")
            else:
                found.add(answer.text if answer.status_code == 200 else answer.json()["type"])
        return found


@pytest.fixture
def gateway(tmp_path) -> Iterator[Gateway]:
    """A gateway that knows nobody yet."""
    one = Gateway(tmp_path)
    yield one
    for process in one.replicas.values():
        process.kill()
        process.wait()
    one.process.terminate()
    assert one.process.wait(20) == 0


def test_replicas_come_and_go(gateway, wait_until: Callable[..., None]):
    """A new replica is asked; one that was killed costs nobody an answer; with none left the problem says so."""
    gateway.start("127.0.0.2", "127.0.0.3")
    wait_until(lambda: gateway.answering() == {"127.0.0.2", "127.0.0.3"})
    gateway.replicas["127.0.0.2"].kill()
    assert gateway.answering() == {"127.0.0.3"}
    gateway.start("127.0.0.4")
    wait_until(lambda: gateway.answering() == {"127.0.0.3", "127.0.0.4"})
    for process in gateway.replicas.values():
        process.kill()
        process.wait()
    wait_until(lambda: gateway.answering(1) == {"/problems/no-replica"})
    answer = gateway.ask()
    assert answer is not None
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/problem+json"


def test_silent_replica_is_left_out(gateway, wait_until: Callable[..., None]):
    """One that takes connections and answers nothing is asked no more after a while, and again when it answers."""
    gateway.start("127.0.0.2", "127.0.0.3")
    wait_until(lambda: gateway.answering() == {"127.0.0.2", "127.0.0.3"})
    gateway.replicas["127.0.0.2"].send_signal(signal.SIGSTOP)
    wait_until(lambda: gateway.answering() == {"127.0.0.3"})
    gateway.replicas["127.0.0.2"].send_signal(signal.SIGCONT)
    wait_until(lambda: gateway.answering() == {"127.0.0.2", "127.0.0.3"})

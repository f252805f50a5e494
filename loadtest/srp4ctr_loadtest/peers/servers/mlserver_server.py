"""Starts `mlserver start` in place of itself, in a folder with the settings that it reads."""

import json
import os
import sys
from pathlib import Path

from srp4ctr.runtime.serving import free_port
from srp4ctr_loadtest.peers.servers.scoring import Given


def main() -> None:
    """Serve until SIGTERM."""
    given = Given.read()
    folder = Path(given.folder)
    settings = {
        "host": "127.0.0.1",
        "http_port": given.port,
        "grpc_port": free_port(given.port + 1),
        # Inference in the server's own process: with one core, handing requests to another is pure cost.
        "parallel_workers": 0,
        # Each of these costs something at every request; `debug` is the access log.
        "debug": False,
        "gzip_enabled": False,
        "metrics_endpoint": None,
    }
    model = {
        "name": "score",
        "implementation": "srp4ctr_loadtest.peers.servers.mlserver_runtime.Scorer",
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.chdir(folder)
    os.execv(sys.executable, [sys.executable, "-m", "mlserver.cli.main", "start", "."])  # noqa: S606


if __name__ == "__main__":
    main()

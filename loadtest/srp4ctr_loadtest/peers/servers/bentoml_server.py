"""Starts `bentoml serve` in place of itself."""

import os
import sys
from pathlib import Path

from srp4ctr_loadtest.peers.servers.scoring import Given


def main() -> None:
    """Serve until SIGTERM."""
    given = Given.read()
    arguments = ["serve", "srp4ctr_loadtest.peers.servers.bentoml_service:Scorer"]
    arguments += ["--host", "127.0.0.1", "--port", str(given.port)]
    # It asks for a home of its own, and reports its use to its makers where it is not told otherwise.
    home = {"BENTOML_HOME": given.folder, "BENTOML_DO_NOT_TRACK": "True"}
    # `serve` starts `python`, which must be this environment's.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.execve(  # noqa: S606 -- a command of our own, as in all of these
        sys.executable, [sys.executable, "-m", "bentoml", *arguments], {**os.environ, **home, "PATH": path}
    )


if __name__ == "__main__":
    main()

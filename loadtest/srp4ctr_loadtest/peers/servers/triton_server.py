"""Starts the Triton server that the nvidia-pytriton wheel holds, with a model of its Python backend, in place of itself.

pytriton's own decorators would hand every request on to one more process; a model of the Python backend is what Triton's
documentation has, and faster.
"""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from srp4ctr_loadtest.peers.servers.scoring import Given

CONFIG = """\
name: "score"
backend: "python"
max_batch_size: 0
input [
  { name: "user_id", data_type: TYPE_STRING, dims: [ 1 ] },
  { name: "item_ids", data_type: TYPE_STRING, dims: [ -1 ] }
]
output [ { name: "scores", data_type: TYPE_FP32, dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU, count: 1 } ]
"""
MODEL = "from srp4ctr_loadtest.peers.servers.triton_model import TritonPythonModel\n"


def main() -> None:
    """Serve until SIGTERM."""
    given = Given.read()
    spec = find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    repository = _model_repository(Path(given.folder))
    server = _server(package / "tritonserver", Path(given.folder))
    arguments = {
        "model-repository": repository,
        "backend-directory": server / "backends",
        "http-address": "127.0.0.1",
        "http-port": given.port,
        # More only wait for the one instance.
        "http-thread-count": 2,
        # Neither is asked for anything here.
        "allow-grpc": "false",
        "allow-metrics": "false",
        "log-info": "false",
    }
    environment = {
        **os.environ,
        # The backend's process loads Python as a library: this one, where it is one.
        "LD_LIBRARY_PATH": f"{package.parent / 'nvidia_pytriton.libs'}{os.pathsep}{sysconfig.get_config_var('LIBDIR')}",
        # And takes the packages of the first `python3` that it finds.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        str(server / "bin" / "tritonserver"),
        *(f"--{name}={value}" for name, value in arguments.items()),
    ]
    os.execve(command[0], command, environment)  # noqa: S606


def _model_repository(folder: Path) -> Path:
    version = folder / "models" / "score" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    return version.parents[1]


def _server(wheel: Path, folder: Path) -> Path:
    """A copy of the server with the backend for this Python in its place, which is what pytriton itself makes."""
    copy = folder / "tritonserver"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(wheel, copy, ignore=shutil.ignore_patterns("python_backend_stubs"))
    stub = "triton_python_backend_stub"
    python = "{}.{}".format(*sys.version_info[:2])
    shutil.copy(wheel / "python_backend_stubs" / python / stub, copy / "backends" / "python" / stub)
    return copy


if __name__ == "__main__":
    main()

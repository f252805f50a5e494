"""Files of records in a folder whose size is bounded, whoever writes into it."""

import contextlib
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from srp4ctr.contract.records import SUFFIX

log = structlog.get_logger()

PARTS = 8
"""Files that the folder's limit is shared between, so that with the oldest only a part of the records goes."""
PRIVATE = 0o600
_OURS = re.compile(rf"records-\d{{8}}T\d{{6}}-[0-9a-f]{{8}}-\d{{6}}\{SUFFIX}")


class RecordFiles:
    """Appends lines to files of its own that this user alone may read; where there is no more room, the oldest of all go."""

    def __init__(self, folder: Path, max_bytes: int, count: Callable[[int, int], None]) -> None:
        """`count` is told how many lines were written and how many were not. Raises OSError where none can be written."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        self._folder = folder
        self._max_bytes = max_bytes
        self._count = count
        self._lock = threading.Lock()
        self._name = f"records-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        self._number = self._size = 0

    def write(self, lines: Iterable[bytes]) -> None:
        """Append the lines; one thread at a time does."""
        with self._lock:
            batch: list[bytes] = []
            size = 0
            for line in lines:
                if len(line) > self._max_bytes:
                    self._count(0, 1)
                    continue
                if self._size + size and self._size + size + len(line) > self._max_bytes // PARTS:
                    self._append(batch)
                    self._next_file()
                    batch, size = [], 0
                batch.append(line)
                size += len(line)
            self._append(batch)

    def _append(self, batch: list[bytes]) -> None:
        if not batch:
            return
        data = b"".join(batch)
        path = self._folder / f"{self._name}-{self._number:06d}{SUFFIX}"
        try:
            self._make_room(len(data))
            with open(path, "ab", opener=_private) as file:
                file.write(data)
                self._size = file.tell()
        except OSError as error:
            log.warning("records_not_written", folder=str(self._folder), reason=str(error))
            self._count(0, len(batch))
            # What follows must not stand in a line that is half written.
            self._next_file()
        else:
            self._count(len(batch), 0)

    def _next_file(self) -> None:
        self._number += 1
        self._size = 0

    def _make_room(self, size: int) -> None:
        """Remove the oldest files of any process until so many bytes more are within the limit."""
        found = []
        for path in self._folder.iterdir():
            if _OURS.fullmatch(path.name):
                # Another process may remove it, too.
                with contextlib.suppress(FileNotFoundError):
                    seen = path.stat()
                    found.append((seen.st_mtime_ns, seen.st_size, path))
        total = sum(one[1] for one in found)
        for _, freed, path in sorted(found):
            if total + size <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= freed


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, PRIVATE)

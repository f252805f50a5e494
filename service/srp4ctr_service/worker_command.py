"""What the commands share that work until they are told to stop, and take nothing but settings."""

import argparse
import signal
import threading
from collections.abc import Sequence
from typing import TypeVar

from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_service.serve import settings_help

S = TypeVar("S", bound=StoreSettings)


def settings_of(kind: type[S], command: str, description: str, argv: Sequence[str]) -> S:
    """The settings of `srp4ctr <command>`, which has no options but --help; raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog=f"srp4ctr {command}",
        description=description,
        epilog=settings_help(kind),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    return read_settings(kind)


def stop_signal() -> threading.Event:
    """What SIGINT and SIGTERM set from now on."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop

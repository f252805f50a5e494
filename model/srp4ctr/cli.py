"""The `srp4ctr` command: names its sub-commands as strings and imports one only when it is called."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from srp4ctr import __version__
from srp4ctr.contract.errors import DependencyMissing
from srp4ctr.runtime.command import exit_code


class Command(NamedTuple):
    """Where a sub-command lives, which extra it needs, and what it is for."""

    module: str
    extra: str
    help: str


COMMANDS = {
    "data": Command("srp4ctr_offline.data.command", "offline", "get a data set as canonical Parquet tables"),
    "prepare": Command("srp4ctr_offline.prepare", "offline", "tables -> vocabularies, codes, histories"),
    "pretrain": Command(
        "srp4ctr_offline.pretrain", "offline", "pre-train the whole served path on histories"
    ),
    "finetune": Command(
        "srp4ctr_offline.finetune", "offline", "fine-tune for click probabilities, calibrate"
    ),
    "evaluate": Command("srp4ctr_offline.evaluate", "offline", "quality on held-out rows, beside the floors"),
    "export": Command("srp4ctr_offline.export", "offline", "checkpoint -> verified ONNX bundle"),
    "publish": Command("srp4ctr_offline.publish", "offline", "encode every user's state into Redis"),
    "activate": Command("srp4ctr_offline.activate", "offline", "switch the services to a published version"),
    "pipeline": Command("srp4ctr_offline.pipeline", "offline", "from data to activate, one after another"),
    "rollback": Command(
        "srp4ctr_offline.rollback", "offline", "switch the services back to the version before"
    ),
    "versions": Command("srp4ctr_offline.versions", "offline", "list versions, remove those no longer used"),
    "items": Command("srp4ctr_offline.items", "offline", "new and changed items for a version in use"),
    "forget": Command("srp4ctr_offline.forget", "offline", "remove all that Redis has of a user"),
    "serve": Command("srp4ctr_service.serve", "service", "answer POST /score"),
    "refresh": Command("srp4ctr_service.refresh", "service", "encode users anew as they act"),
    "dead-letters": Command(
        "srp4ctr_service.dead_letters", "service", "users whom no worker could refresh; try them again"
    ),
    "monitor": Command("srp4ctr_service.monitor", "service", "measure the model on what users click"),
    "replay": Command(
        "srp4ctr_offline.replay", "offline", "recorded requests: served scores beside ONNX and torch"
    ),
    "doctor": Command("srp4ctr_service.doctor", "service", "what is installed, reachable and active"),
}


def usage() -> str:
    """The text of `srp4ctr --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    return (
        "usage: srp4ctr COMMAND ...\n\n"
        "From behaviour logs to click probabilities: train offline, cache user states, score candidates.\n\n"
        f"commands, in the order of a first run:\n{rows}\n\n"
        "srp4ctr COMMAND --help says what a command reads and writes. Start with: make demo\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; gives its exit code, which `exit_code` explains."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] == "--version":
        print(f"srp4ctr {__version__}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"srp4ctr: no command {arguments[0]!r}\n\n{usage()}", end="", file=sys.stderr)
        return 2
    # How long torch's threads wait actively for one another. By default that is so long that on a busy machine they
    # lose their core to somebody else meanwhile (docs/log.md). It must be set before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

    def run() -> int:
        try:
            module = importlib.import_module(command.module)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0].startswith("srp4ctr"):
                raise
            raise DependencyMissing(error.name, command.extra) from error
        code: int = module.main(arguments[1:])
        return code

    return exit_code(f"srp4ctr {arguments[0]}", run)


if __name__ == "__main__":
    sys.exit(main())

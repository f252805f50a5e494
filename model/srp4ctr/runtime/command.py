"""How a command ends."""

import sys
from collections.abc import Callable

from srp4ctr.contract.errors import Srp4ctrError


def exit_code(name: str, run: Callable[[], int]) -> int:
    """What `run` gives; what a user can mend ends in one line on standard error and 1, an interrupt in 130."""
    try:
        return run()
    except Srp4ctrError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130

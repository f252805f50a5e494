"""Its settings' reference. `python -m srp4ctr_loadtest.load.settings_document` prints it, for docs/loadtest-settings.md."""

from srp4ctr.runtime.settings_table import settings_table
from srp4ctr_loadtest.load.settings import LoadSettings

_HEAD = """\
# Settings of the load test

`make loadtest` and `docker compose run --rm loadtest` read these variables, beside those of [every command](settings.md); each is an
option, too: `SRP4CTR_LOADTEST_BUDGET_MS` is `--budget-ms`, and an option goes before its variable. A value that is wrong ends the
command with its name. [Operations](operations.md#how-much-it-takes) says what the load test does.

This page is made from the class in loadtest/srp4ctr_loadtest/load/settings.py: `make documents`.

"""


def document() -> str:
    """The page, in Markdown."""
    return _HEAD + settings_table(LoadSettings)


def main() -> None:
    """Print the page."""
    print(document(), end="")


if __name__ == "__main__":
    main()

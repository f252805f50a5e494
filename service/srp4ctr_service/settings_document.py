"""The settings reference. `python -m srp4ctr_service.settings_document` prints it, for docs/settings.md."""

from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.settings_table import settings_table
from srp4ctr_service import settings

_HEAD = """\
# Settings

Every command reads these variables from its environment; an empty one is one that is not set. A file of the same name in
`/run/secrets`, such as `/run/secrets/srp4ctr_redis_url`, gives the value of one that is not set. A value that is wrong ends the
command with the variable's name. `srp4ctr serve --help` and its like list them, too.

This page is made from the classes in service/srp4ctr_service/settings.py: `make documents`.
"""


def document() -> str:
    """The page, in Markdown."""
    parts = [_HEAD, "## Every command\n", settings_table(StoreSettings)]
    shared = tuple(StoreSettings.model_fields)
    for kind in _kinds():
        _, command, _ = (kind.__doc__ or "").rsplit("`", 2)
        parts += [f"## {command}\n", settings_table(kind, shared)]
    return "\n".join(parts)


def _kinds() -> list[type[StoreSettings]]:
    """Each command's own settings; the class's docstring ends with the command."""
    found = vars(settings).values()
    return [
        one
        for one in found
        if isinstance(one, type) and issubclass(one, StoreSettings) and one is not StoreSettings
    ]


def main() -> None:
    """Print the page."""
    print(document(), end="")


if __name__ == "__main__":
    main()

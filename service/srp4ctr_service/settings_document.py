"""The settings reference. `python -m srp4ctr_service.settings_document` prints it, for docs/settings.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from srp4ctr.runtime.settings import ENV_PREFIX, StoreSettings
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
    parts = [_HEAD, "## Every command\n", _table(StoreSettings, ())]
    shared = tuple(StoreSettings.model_fields)
    for kind in _kinds():
        _, command, _ = (kind.__doc__ or "").rsplit("`", 2)
        parts += [f"## {command}\n", _table(kind, shared)]
    return "\n".join(parts)


def _kinds() -> list[type[StoreSettings]]:
    """Each command's own settings; the class's docstring ends with the command."""
    found = vars(settings).values()
    return [
        one
        for one in found
        if isinstance(one, type) and issubclass(one, StoreSettings) and one is not StoreSettings
    ]


def _table(kind: type[StoreSettings], left_out: Sequence[str]) -> str:
    lines = ["| variable | default | takes | what it is |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        if name not in left_out:
            default = "unset" if field.default is None else f"`{field.default}`"
            lines.append(
                f"| `{ENV_PREFIX}{name.upper()}` | {default} | {_takes(field)} | {field.description} |"
            )
    return "\n".join(lines) + "\n"


def _takes(field: FieldInfo) -> str:
    """The values that a field accepts, in words."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(annotation))
    kinds = [one for one in get_args(annotation) or (annotation,) if one is not type(None)]
    names = {int: "integer", float: "number", str: "text", Path: "path"}
    bounds = []
    for rule in field.metadata:
        for attribute, sign in (("gt", "> "), ("ge", "≥ "), ("lt", "< "), ("le", "≤ ")):
            value = getattr(rule, attribute, None)
            if value is not None:
                bounds.append(f"{sign}{value:g}")
        pattern = getattr(rule, "pattern", None)
        if pattern is not None:
            bounds.append(f"like `{pattern}`")
    return ", ".join([" or ".join(names[one] for one in kinds), *bounds])


def main() -> None:
    """Print the page."""
    print(document(), end="")


if __name__ == "__main__":
    main()

"""Settings as a table for people: every variable with its default, what it takes, and what it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings


def settings_table(kind: type[BaseSettings], left_out: Sequence[str] = ()) -> str:
    """Markdown, a line a setting of the class but for those left out; variables as its prefix has them."""
    lines = ["| variable | default | takes | what it is |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        if name not in left_out:
            variable = f"{kind.model_config['env_prefix']}{name.upper()}"
            lines.append(f"| `{variable}` | {_default(field)} | {_takes(field)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "unset"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _takes(field: FieldInfo) -> str:
    """The values that a field accepts, in words."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(annotation))
    kinds = [one for one in get_args(annotation) or (annotation,) if one is not type(None)]
    names = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
    bounds = []
    for rule in field.metadata:
        for attribute, sign in (("gt", "> "), ("ge", "≥ "), ("lt", "< "), ("le", "≤ ")):
            value = getattr(rule, attribute, None)
            if value is not None:
                bounds.append(f"{sign}{value:g}")
        pattern = getattr(rule, "pattern", None)
        if pattern is not None:
            # A table's cell ends at a plain bar, also within code.
            bounds.append(f"like `{pattern}`".replace("|", "\\|"))
    return ", ".join([" or ".join(names[one] for one in kinds), *bounds])

"""Settings and options as a table for people: each with its default, what it takes, and what it is."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}


def settings_table(kind: type[BaseSettings], left_out: Sequence[str] = ()) -> str:
    """Markdown, a line a setting of the class but for those left out; variables as its prefix has them."""
    fields = kind.model_fields.items()
    prefix = kind.model_config["env_prefix"]
    return _table(
        "variable", ((f"{prefix}{name.upper()}", one) for name, one in fields if name not in left_out)
    )


def options_table(kind: type[BaseModel]) -> str:
    """The same of a class's fields under their own names; those without a description, such as sections, have no line."""
    return _table("key", ((name, one) for name, one in kind.model_fields.items() if one.description))


def _table(first: str, fields: Iterable[tuple[str, FieldInfo]]) -> str:
    lines = [f"| {first} | default | takes | what it is |", "|---|---|---|---|"]
    for name, field in fields:
        lines.append(f"| `{name}` | {_default(field)} | {_takes(field)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "unset"
    if isinstance(field.default, tuple):
        return f"`{list(field.default)}`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _takes(field: FieldInfo) -> str:
    """The values that a field accepts, in words."""
    return _in_words(field.annotation, field.metadata)


def _in_words(annotation: Any, rules: Iterable[Any]) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(annotation))
    if get_origin(annotation) is Annotated:
        kind, *own = get_args(annotation)
        return _in_words(kind, [rule for one in own for rule in (*getattr(one, "metadata", ()), one)])
    if get_origin(annotation) is tuple:
        kind = get_args(annotation)[0]
        plain = get_args(kind)[0] in NAMES if get_origin(kind) is Annotated else kind in NAMES
        return f"a list, each: {_in_words(kind, ())}" if plain else "a list"
    kinds = [one for one in get_args(annotation) or (annotation,) if one is not type(None)]
    bounds = []
    for rule in rules:
        for attribute, sign in (("gt", "> "), ("ge", "≥ "), ("lt", "< "), ("le", "≤ ")):
            value = getattr(rule, attribute, None)
            if value is not None:
                bounds.append(f"{sign}{value:g}")
        pattern = getattr(rule, "pattern", None)
        if pattern is not None:
            # A table's cell ends at a plain bar, also within code.
            bounds.append(f"like `{pattern}`".replace("|", "\\|"))
    words = [NAMES[one] if one in NAMES else _in_words(one, ()) for one in kinds]
    return ", ".join([" or ".join(words), *bounds])

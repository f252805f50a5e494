"""The reference of a run's TOML file is that of the code."""

from pathlib import Path

from pydantic import BaseModel

from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.configuration_document import SECTIONS, document

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_reference_is_the_committed_one() -> None:
    """docs/configuration.md is what the classes say; renew it by: make documents."""
    assert PAGE.read_text() == document()


def test_reference_has_every_key() -> None:
    """Each key of each section that a configuration may have is described, but for a feature's type and a split's rule."""
    described = {kind for _, kind, _ in SECTIONS}
    waiting: list[object] = [RunConfig]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            assert kind in described, kind
            for name, field in kind.model_fields.items():
                parts = _parts(field.annotation)
                assert parts or field.description or name in ("type", "rule"), f"{kind.__name__}.{name}"
                waiting += parts
    text = PAGE.read_text()
    for _, kind, _ in SECTIONS:
        for name, field in kind.model_fields.items():
            if field.description:
                assert f"| `{name}` |" in text


def _parts(annotation: object) -> list[object]:
    """The classes of options that an annotation holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for one in getattr(annotation, "__args__", ()) for part in _parts(one)]

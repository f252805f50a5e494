"""The reference of a run's TOML file. `python -m srp4ctr_offline.configuration_document` prints it, for docs/configuration.md."""

from pydantic import BaseModel

from srp4ctr.contract.schema import CategoricalFeature, FeatureSchema, MultiValuedFeature, NumericFeature
from srp4ctr.nn.model import ModelConfig
from srp4ctr.nn.objectives import MaskingConfig
from srp4ctr.runtime.settings_table import options_table
from srp4ctr_offline.config import (
    ColumnSplit,
    FinetuneConfig,
    GateConfig,
    GlobalSplit,
    PerUserSplit,
    PretrainConfig,
    RunConfig,
    Tables,
)

_HEAD = """\
# Configuration of a run

A run is one TOML file; configs/ has one for each data set that `srp4ctr data` knows, and configs/movielens-100k.toml is the one to copy. Every
key that is not there has its default, every key that is not known is an error that names it. [The contract](contract.md#tables) says what the
tables hold, [the log](log.md) what settings were tried on which data.

This page is made from the classes in offline/srp4ctr_offline/config.py and what they are made of: `make documents`.
"""
SECTIONS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("Before the first section", RunConfig, ""),
    ("[tables]", Tables, ""),
    (
        "[schema]",
        FeatureSchema,
        (
            "Names of columns. `order` must grow with time: numbers, integers in both tables or fractions in both. A feature is "
            '`{ name = "genres", type = "multi_valued", max_values = 6 }`, of one of the three types below.'
        ),
    ),
    ("A categorical feature", CategoricalFeature, '`type = "categorical"`: a text, an integer or a boolean.'),
    ("A multi-valued feature", MultiValuedFeature, '`type = "multi_valued"`: a list of texts or integers.'),
    (
        "A numeric feature",
        NumericFeature,
        '`type = "numeric"`: a number, of which its quantile bucket is kept.',
    ),
    (
        '[split], rule = "global"',
        GlobalSplit,
        "All rows by `order`, which must be one clock for all users: what click logs want.",
    ),
    ('[split], rule = "per_user"', PerUserSplit, "Each user's rows by `order`."),
    ('[split], rule = "column"', ColumnSplit, "A column says `train`, `valid` or `test`."),
    (
        "[model]",
        ModelConfig,
        (
            "Sizes of the network and of what is cached. `state_dtype`, `query_tokens`, `recent_events` and `width` decide the bytes "
            "of a state, `cross_layers`, `cross_feed_forward` and `tower` most of a candidate's CPU."
        ),
    ),
    ("[pretrain]", PretrainConfig, "AdamW; the learning rate rises, and falls as a cosine to 0."),
    ("[pretrain.masking]", MaskingConfig, "What is hidden of a history, and what recovering it weighs."),
    ("[finetune]", FinetuneConfig, "AdamW likewise; calibrated on all validation rows afterwards."),
    (
        "[gate]",
        GateConfig,
        "How much worse than the active version `srp4ctr activate` lets a new one be, on the same test rows.",
    ),
)


def document() -> str:
    """The page, in Markdown."""
    parts = [_HEAD]
    for heading, kind, text in SECTIONS:
        parts += [f"## {heading}\n", *([f"{text}\n"] if text else []), options_table(kind)]
    return "\n".join(parts)


def main() -> None:
    """Print the page."""
    print(document(), end="")


if __name__ == "__main__":
    main()

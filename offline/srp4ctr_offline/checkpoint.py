"""Checkpoints: weights with the configuration and code layout that they belong to."""

import dataclasses
import hashlib
from pathlib import Path

import torch

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.transforms import Field, Fields, Transforms
from srp4ctr.nn.model import ModelConfig, Srp4Ctr
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.prepared import Prepared

FILE = "model.pt"


def new_model(config: RunConfig, prepared: Prepared) -> Srp4Ctr:
    """A model with fresh weights for the prepared data."""
    return Srp4Ctr(config.model, prepared.transforms.fields, prepared.max_events)


def save_model(model: Srp4Ctr, transforms: Transforms, folder: Path) -> None:
    """Write `model.pt`, with the digest of the transforms whose codes the weights belong to."""
    content = {
        "transforms": transforms.digest(),
        # All of it: a default that changes would make it another model, and nobody would know.
        "config": model.config.model_dump(),
        "fields": dataclasses.asdict(model.fields),
        "max_events": model.max_events,
        "weights": model.state_dict(),
    }
    torch.save(content, folder / FILE)


def load_model(folder: Path, stage: str, config: RunConfig, prepared: Prepared) -> Srp4Ctr:
    """Read `model.pt`, which the command `stage` writes.

    Raises DataError where there is none, or where data, schema or model sizes are no longer those of its weights.
    """
    if not (folder / FILE).exists():
        raise DataError(f"{folder} holds no model; run: srp4ctr {stage} CONFIG")
    content = torch.load(folder / FILE, weights_only=True)
    sizes = config.model.model_dump()
    if content["transforms"] != prepared.transforms.digest() or content["config"] != sizes:
        raise DataError(
            f"{folder / FILE} was made for other data, another [schema] or another [model]; "
            f"run srp4ctr {stage} CONFIG again"
        )
    fields = Fields(
        **{group: tuple(Field(**one) for one in part) for group, part in content["fields"].items()}
    )
    model = Srp4Ctr(ModelConfig(**content["config"]), fields, content["max_events"])
    model.load_state_dict(content["weights"])
    return model.eval()


def fingerprint(model: Srp4Ctr, transforms: Transforms) -> str:
    """Hexadecimal SHA-256 of schema, vocabularies, model sizes and weights: what a score depends on."""
    sha = hashlib.sha256(transforms.digest())
    sha.update(model.config.model_dump_json().encode())
    for name, weight in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(weight.shape)}\n".encode())
        sha.update(weight.contiguous().numpy().tobytes())
    return sha.hexdigest()

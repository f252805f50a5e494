"""Our DIN's inputs and weights, as FuxiCTR's DIN takes them.

Shapes: B rows of a batch, U histories, C candidates, L events, W code columns, F features, D width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from srp4ctr.contract.transforms import Field, Fields
from srp4ctr.nn.baselines import BaselineConfig, Din
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.prepared import Ints, Prepared

LEARNING_RATE = 1e-3
MAX_GRADIENT_NORM = 10.0
"""FuxiCTR's default."""

Arrays = Mapping[str, NDArray[Any]]


class DinInputs(NamedTuple):
    """What both DINs can take: item ids, and the single-valued features of users and contexts."""

    fields: Fields
    users: Ints
    contexts: Ints


def din_inputs(prepared: Prepared) -> DinInputs:
    """The layout of these inputs, and which code columns of users and contexts they are.

    FuxiCTR's DIN concatenates an item's fields where ours sums them, so items are known by their ids alone.
    """
    fields = prepared.transforms.fields
    groups: dict[str, tuple[Field, ...]] = {"item": fields.item[:1], "behaviour": ()}
    columns = {}
    for group in ("user", "context"):
        kept = [field for field in getattr(fields, group) if field.width == 1]
        columns[group] = np.array([field.start for field in kept], np.int64)
        groups[group] = tuple(dataclasses.replace(field, start=at) for at, field in enumerate(kept))
    return DinInputs(Fields(**groups), columns["user"], columns["context"])


class DinBatch(NamedTuple):
    """Arguments of `CtrModel.forward`, and the labels [U, C]."""

    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    labels: Tensor


def din_batch(prepared: Prepared, inputs: DinInputs, rows_UC: Ints, cuts_U: Ints) -> DinBatch:
    """Rows [U, C], each C of one user under the history that ends at its cut, padded to the longest there may be."""
    table = prepared.rows
    users = table.user[rows_UC[:, 0]]
    events_UL = prepared.histories(users, cuts_U).items[..., :1]
    missing = prepared.max_events - events_UL.shape[1]
    events_UL = np.pad(events_UL, ((0, 0), (missing, 0), (0, 0)))
    arrays = (
        events_UL,
        events_UL[..., :0],
        prepared.users.codes[users][:, inputs.users],
        prepared.items.codes[table.item[rows_UC]][..., :1],
        table.contexts[rows_UC][..., inputs.contexts],
    )
    items, behaviours, user, candidates, contexts = (
        torch.from_numpy(np.ascontiguousarray(array)) for array in arrays
    )
    label_UC = torch.from_numpy(table.label[rows_UC].astype(np.float32))
    return DinBatch((items, behaviours, user, candidates, contexts), label_UC)


def as_peers_rows(batch: DinBatch) -> Arrays:
    """The same for FuxiCTR: a batch of single rows, each with a history of its own."""
    events, _, user, candidates, contexts = (tensor.numpy() for tensor in batch.inputs)
    assert candidates.shape[1] == 1
    return {
        "events": events[..., 0].astype(np.int64),
        "candidate": candidates[:, 0, 0].astype(np.int64),
        "side": np.concatenate([user, contexts[:, 0]], axis=1).astype(np.int64),
        "label": batch.labels[:, 0].numpy(),
    }


def din_config(config: RunConfig) -> BaselineConfig:
    """A DIN with the run's sizes."""
    sizes = config.model
    return BaselineConfig(width=sizes.width, tower=sizes.tower, dropout=sizes.dropout, heads=sizes.heads)


def din_options(config: BaselineConfig, fields: Fields) -> dict[str, Any]:
    """What FuxiCTR's DIN is made of, for the same sizes."""
    side = [*fields.user, *fields.context]
    return {
        "width": config.width,
        "tower": config.tower,
        "attention": config.attention,
        "dropout": config.dropout,
        "learning_rate": LEARNING_RATE,
        "max_gradient_norm": MAX_GRADIENT_NORM,
        "features": [
            *((f"side{place}", "user", field.size + 1) for place, field in enumerate(side)),
            ("item", "item", fields.item[0].size + 1),
        ],
    }


def without_product(model: Din) -> None:
    """Let the tower not see the product of candidate and interest, which FuxiCTR's does not have."""
    first = model.tower[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.chunk(5, dim=1)[2].zero_()


def as_peers_weights(model: Din) -> Arrays:
    """Our weights under FuxiCTR's layout: its tower reads the features of user and context first, one by one."""
    tables = [*model.items.tables, *model.users.tables, *model.contexts.tables]
    names = ["item", *(f"side{place}" for place in range(len(tables) - 1))]
    weights = {name: table.weight for name, table in zip(names, tables, strict=True)}
    attention = [model.attention.first, *model.attention.rest]
    for name, layers in (("attention", attention), ("tower", model.tower)):
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for place, layer in enumerate(linear):
            weights |= {f"{name}.{place}.weight": layer.weight, f"{name}.{place}.bias": layer.bias}
    candidate, interest, _, user, context = weights["tower.0.weight"].chunk(5, dim=1)
    side = [user] * len(model.users.tables) + [context] * len(model.contexts.tables)
    weights["tower.0.weight"] = torch.cat([*side, candidate, interest], dim=1)
    return {f"weight.{name}": weight.detach().numpy() for name, weight in weights.items()}

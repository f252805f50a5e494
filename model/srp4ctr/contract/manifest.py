"""The bundle's manifest: what the files of a model version are, and by which hashes they are known."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field

from srp4ctr.contract.schema import Strict
from srp4ctr.contract.state import StateLayout, UserState, decode_state, encode_state

FORMAT_VERSION: Literal[3] = 3
MANIFEST = "manifest.json"
REVISION = "revision.json"
REVISION_NAME = r"^[0-9a-f]{8}$"
ENCODER = "encoder.onnx"
SCORER = "scorer.onnx"
ITEM = "item.onnx"
ITEMS = "items"
COLD_STATE = "cold_state.bin"


class TensorSpec(Strict):
    """A graph's input or output; named dimensions vary: B users, L events, S positions, C candidates."""

    name: str
    dtype: Literal["float32", "int32"]
    shape: tuple[int | str, ...]


class GraphSpec(Strict):
    """What a graph takes and gives, by name."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Parity(Strict):
    """The largest absolute differences between ONNX Runtime and torch that the export has seen."""

    encoder_max_abs: float
    item_max_abs: float
    scorer_max_abs: float
    tolerance: float
    shapes_compared: int


class Calibration(Strict):
    """Platt scaling inside the scorer's graph: probability = sigmoid(scale * logit + bias)."""

    scale: float
    bias: float


class Manifest(Strict):
    """`manifest.json` of a bundle."""

    format_version: Literal[3] = FORMAT_VERSION
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    name: str
    created_at: str
    fingerprint: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of schema, vocabularies, weights"
    )
    state: StateLayout
    encoder: GraphSpec
    item: GraphSpec
    scorer: GraphSpec
    items: int = Field(ge=0, description="rows of the item table, the unknown item's not counted")
    calibration: Calibration
    parity: Parity
    exporter: dict[str, str]
    data_fingerprint: str
    git_commit: str | None
    metrics: dict[str, float]
    files: dict[str, str] = Field(description="SHA-256 of every other file, by its path in the bundle")

    @property
    def fingerprint_bytes(self) -> bytes:
        """The fingerprint as states carry it."""
        return bytes.fromhex(self.fingerprint)

    def encode_state(self, state: UserState) -> bytes:
        """The state's bytes, in this bundle's layout and marked as its own."""
        return encode_state(state, self.state, self.fingerprint_bytes)

    def decode_state(self, data: bytes) -> UserState:
        """The state in `data`; raises StateCorrupt, and StateForeign where another model wrote it."""
        return decode_state(data, self.state, self.fingerprint_bytes)


class ItemsManifest(Strict):
    """`revision.json` of a revision of a bundle's item table."""

    format_version: Literal[1] = 1
    version: str = Field(description="of the bundle")
    fingerprint: str = Field(description="of the model whose item graph made the vectors")
    revision: str = Field(pattern=REVISION_NAME, description="of the table's content")
    created_at: str
    items: int = Field(ge=0, description="rows of the table, the unknown item's not counted")
    new: int = Field(ge=0, description="items that the bundle's own table lacks")
    changed: int = Field(ge=0, description="items with other codes than in the bundle's own table")
    removed: int = Field(ge=0, description="items of the bundle's own table that are not in this one")
    files: dict[str, str] = Field(description="SHA-256 of every other file, by its path in the revision")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

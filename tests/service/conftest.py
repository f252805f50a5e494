"""A small bundle of known arithmetic, a service on a real socket, and a Redis that holds what it needs."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from srp4ctr.contract.keys import Keys
from srp4ctr.contract.manifest import (
    COLD_STATE,
    ITEM,
    ITEMS,
    SCORER,
    Calibration,
    GraphSpec,
    Manifest,
    Parity,
    TensorSpec,
)
from srp4ctr.contract.schema import FeatureSchema
from srp4ctr.contract.state import ArraySpec, StateLayout, UserState, encode_state
from srp4ctr.contract.transforms import Transforms
from srp4ctr.contract.vocabulary import Vocabulary, to_texts
from srp4ctr.runtime.bundle import Bundle, file_hashes, seal_bundle
from srp4ctr.runtime.items import Catalogue, ItemTable
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_service.settings import Settings

ITEM_IDS = [str(number) for number in range(1, 41)]
GENRES = ["Comedy", "Drama"]
SCHEMA = FeatureSchema.model_validate(
    {
        "item_attributes": [{"name": "genre", "type": "categorical"}],
        "context_features": [
            {"name": "weekday", "type": "categorical"},
            {"name": "hour", "type": "numeric"},
            {"name": "position", "type": "categorical", "reference": 2},
        ],
    }
)
LAYOUT = StateLayout(kind="tokens", arrays=(ArraySpec(name="tokens", dtype="float16", shape=(2, 4)),))


@dataclass(frozen=True)
class Known:
    """A bundle whose scores a test can work out: sigmoid(bias + mean(tokens) + .01 * sum of all codes)."""

    bundle: Bundle
    bias: float

    @property
    def version(self) -> str:
        return self.bundle.manifest.version

    def scores(self, item_ids, tokens=0.0, context=None, codes=None):
        """The scores that the service must give; `codes` are the items', where they are not the catalogue's."""
        if codes is None:
            codes = self.bundle.items.codes[self.bundle.items.rows(item_ids)]
        contexts = context if isinstance(context, list) else [context or {}]
        context_codes = [
            self.bundle.transforms.encode_values("context", one, "context").sum() for one in contexts
        ]
        moved = 0.01 * (codes.sum(axis=1) + np.array(context_codes))
        return 1 / (1 + np.exp(-(self.bias + tokens + moved)))

    def state(self, tokens=0.5, events=3, created_at_ms=None):
        """The bytes of a state whose tokens all have that value."""
        now = time.time_ns() // 1_000_000 if created_at_ms is None else created_at_ms
        state = UserState({"tokens": np.full((2, 4), tokens, np.float16)}, events, now)
        return encode_state(state, LAYOUT, self.bundle.manifest.fingerprint_bytes)


def scorer_graph(bias):
    """The graph that computes what Known.scores says."""
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["tokens", "axes_01"], ["mean"], keepdims=0),
        node("ReduceSum", ["item_vectors", "axes_1"], ["items_sum"], keepdims=0),
        node("Cast", ["context_codes"], ["context_f"], to=TensorProto.FLOAT),
        node("ReduceSum", ["context_f", "axes_1"], ["context_sum"], keepdims=0),
        node("Add", ["items_sum", "context_sum"], ["codes"]),
        node("Mul", ["codes", "weight"], ["weighted"]),
        node("Add", ["weighted", "mean"], ["moved"]),
        node("Add", ["moved", "bias"], ["logit"]),
        node("Sigmoid", ["logit"], ["probability"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("tokens", TensorProto.FLOAT, [2, 4]),
        value("item_vectors", TensorProto.FLOAT, ["C", 2]),
        value("context_codes", TensorProto.INT32, ["K", 3]),
    ]
    constants = [
        helper.make_tensor("axes_01", TensorProto.INT64, [2], [0, 1]),
        helper.make_tensor("axes_1", TensorProto.INT64, [1], [1]),
        helper.make_tensor("weight", TensorProto.FLOAT, [], [0.01]),
        helper.make_tensor("bias", TensorProto.FLOAT, [], [bias]),
    ]
    outputs = [value("probability", TensorProto.FLOAT, ["C"])]
    graph = helper.make_graph(nodes, "known", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def item_graph():
    """The graph whose vectors are the codes themselves."""
    value = helper.make_tensor_value_info
    cast = helper.make_node("Cast", ["item_codes"], ["item_vectors"], to=TensorProto.FLOAT)
    codes = value("item_codes", TensorProto.INT32, ["C", 2])
    graph = helper.make_graph([cast], "items", [codes], [value("item_vectors", TensorProto.FLOAT, ["C", 2])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def make_known(bundles: Path, version: str, bias: float, model: str | None = None) -> Known:
    """Write a bundle of that version below `bundles`; those of one `model` share a fingerprint."""
    fingerprint = hashlib.sha256((model or version).encode()).digest()
    draft = bundles / f"draft-{version}"
    vocabularies = {
        "item.id": Vocabulary.fit(to_texts(ITEM_IDS)),
        "item.genre": Vocabulary.fit(to_texts(GENRES)),
        "context.weekday": Vocabulary.fit(to_texts(["Mo", "Tu"])),
        "context.position": Vocabulary.fit(to_texts(["1", "2"])),
    }
    transforms = Transforms(SCHEMA, vocabularies, {"context.hour": np.array([6.0, 12.0, 18.0])})
    transforms.save(draft)
    ids = Vocabulary.fit(to_texts(ITEM_IDS)).values
    codes = np.array([[1, 1], *([2 + row, 2 + row % 2] for row in range(len(ITEM_IDS)))], np.int32)
    prior = np.linspace(0.1, 0.9, len(ITEM_IDS) + 1, dtype=np.float32)
    # Its vectors are the codes themselves.
    ItemTable.build(Catalogue(ids, codes, prior), codes.astype(np.float32)).save(draft / ITEMS)
    cold = UserState({"tokens": np.zeros((2, 4), np.float16)}, 0, 0)
    (draft / COLD_STATE).write_bytes(encode_state(cold, LAYOUT, fingerprint))
    onnx.save(scorer_graph(bias), draft / SCORER)
    onnx.save(item_graph(), draft / ITEM)
    scorer = GraphSpec(
        inputs=(
            TensorSpec(name="tokens", dtype="float32", shape=(2, 4)),
            TensorSpec(name="item_vectors", dtype="float32", shape=("C", 2)),
            TensorSpec(name="context_codes", dtype="int32", shape=("K", 3)),
        ),
        outputs=(TensorSpec(name="probability", dtype="float32", shape=("C",)),),
    )
    item = GraphSpec(
        inputs=(TensorSpec(name="item_codes", dtype="int32", shape=("C", 2)),),
        outputs=(TensorSpec(name="item_vectors", dtype="float32", shape=("C", 2)),),
    )
    manifest = Manifest(
        version=version,
        name="known",
        created_at="2026-01-01T00:00:00Z",
        fingerprint=fingerprint.hex(),
        state=LAYOUT,
        encoder=GraphSpec(inputs=(), outputs=()),
        item=item,
        scorer=scorer,
        items=len(ITEM_IDS),
        calibration=Calibration(scale=1.0, bias=0.0),
        parity=Parity(
            encoder_max_abs=0.0, item_max_abs=0.0, scorer_max_abs=0.0, tolerance=1e-4, shapes_compared=0
        ),
        exporter={},
        data_fingerprint="",
        git_commit=None,
        metrics={"auc": 0.75},
        files=file_hashes(draft),
    )
    return Known(seal_bundle(draft, bundles, manifest), bias)


@pytest.fixture(scope="session")
def var_dir(tmp_path_factory) -> Path:
    """A var folder with the bundles of this session."""
    return tmp_path_factory.mktemp("var")


@pytest.fixture(scope="session")
def first(var_dir) -> Known:
    """The version that services begin with."""
    return make_known(var_dir / "bundles", "first", -1.0)


@pytest.fixture(scope="session")
def second(var_dir) -> Known:
    """Another version, whose scores are all higher."""
    return make_known(var_dir / "bundles", "second", 1.0)


@pytest.fixture(scope="session")
def twin(var_dir) -> Known:
    """A version of the same model as `first`."""
    return make_known(var_dir / "bundles", "twin", -1.0, model="first")


@contextmanager
def open_store(settings: Settings) -> Iterator[StateStore]:
    """The store as publish and activate use it."""
    with connect(settings, settings.redis_url) as client:
        yield StateStore(client, Keys(settings.namespace))


@pytest.fixture
def settings(service_settings, var_dir, redis_server) -> Settings:
    """Settings of a service with this test's own Redis."""
    return service_settings(var_dir, redis_server.url)


@pytest.fixture
def store(settings) -> Iterator[StateStore]:
    """The store as publish and activate use it."""
    with open_store(settings) as store:
        yield store


@pytest.fixture
def activate(store) -> Callable[[Known], None]:
    """Publish a version without users, and make it the active one."""
    return lambda known: make_active(store, known)


def make_active(store: StateStore, known: Known) -> None:
    store.mark_published(known.version, known.bundle.manifest.fingerprint, 0)
    store.activate(known.version, known.bundle.manifest.fingerprint)


@pytest.fixture
def start(settings, serving) -> Iterator[Callable[..., httpx.Client]]:
    """Start a service, with other settings if need be; gives a client of it."""
    with ExitStack() as stack:
        yield lambda settings=settings: stack.enter_context(serving(settings))


@pytest.fixture
def api(first, activate, start) -> httpx.Client:
    """A client of a service that serves `first`, with this test's own Redis."""
    activate(first)
    return start()


@pytest.fixture(scope="session")
def shared_api(first, serving, service_settings, var_dir, shared_redis_server) -> Iterator[httpx.Client]:
    """A client of a service that serves `first`, for tests that change nothing."""
    settings = service_settings(var_dir, shared_redis_server.url)
    with open_store(settings) as store:
        make_active(store, first)
    with serving(settings) as client:
        yield client


@pytest.fixture
def score(api) -> Callable[..., httpx.Response]:
    """POST /score for user 1 and some items, or what a test says instead."""

    def score(**changed) -> httpx.Response:
        return api.post("/score", json={"user_id": "1", "item_ids": ["1", "2", "3"]} | changed)

    return score

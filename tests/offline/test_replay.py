"""`srp4ctr replay`: what was served is what ONNX Runtime and torch compute of the request; where it is not, the input is named."""

import base64
import dataclasses
import json

import numpy as np
import pytest
import torch

from srp4ctr.cli import main
from srp4ctr.contract.errors import DataError
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.records import read_records
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.checkpoint import new_model, save_model
from srp4ctr_offline.export import export
from srp4ctr_offline.publish import publish
from srp4ctr_offline.reference import Reference
from srp4ctr_offline.replay import replay
from srp4ctr_offline.run import start_stage

NEW = {"category": "?", "tags": ["a", "b"], "price": 12.5}


def asked(run):
    """Requests that together use all that a request may have."""
    items = run.item_ids
    for place, user in enumerate(run.user_ids[:20]):
        some = {"user_id": user, "item_ids": items[place : place + 1 + 4 * place]}
        yield "/score", some | {"context": {"hour": place, "device": "?"}}
    user = run.user_ids[3]
    yield "/rank", {"user_id": "a stranger", "item_ids": [*items[:30], "unknown"], "top_k": 3}
    yield "/score", {"user_id": user, "item_ids": items[:3], "candidate_features": {"hour": [1, 2, None]}}
    yield "/score", {"user_id": user, "item_ids": [items[0], "new"], "items": {"new": NEW, items[0]: NEW}}
    yield "/score", {"user_id": user, "item_ids": items[:5], "user_features": {"age_group": "?"}}
    one = {"item_ids": items[:9]}
    yield "/score/batch", {"requests": [one | {"user_id": user} for user in run.user_ids[:3]]}


@pytest.fixture(scope="module")
def tiny_recent(tiny, tmp_path_factory):
    """A run on the same data, with fresh weights, whose states keep recent events as codes beside the tokens."""
    folder = tmp_path_factory.mktemp("tiny-recent")
    model = tiny.config.model.model_copy(update={"recent_events": 5, "cross_layers": 2})
    config = tiny.config.model_copy(update={"name": "tiny-recent", "model": model})
    run = folder / "run"
    stage = start_stage(run / "finetune", config)
    (run / "prepared").symlink_to(tiny.run / "prepared")
    torch.manual_seed(0)
    save_model(new_model(config, tiny.prepared), tiny.prepared.transforms, stage)
    bundles = folder / "bundles"
    return dataclasses.replace(
        tiny, config=config, run=run, bundles=bundles, bundle=export(config, run, bundles)
    )


@pytest.fixture(scope="module", params=["tiny", "tiny_sequence", "tiny_recent"])
def run(request):
    """An exported run of each kind of state."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def served(run, serving, service_settings, shared_redis_server, tmp_path_factory):
    """What a service of the run's bundle has recorded."""
    manifest = run.bundle.manifest
    settings = service_settings(run.bundles.parent, shared_redis_server.url).model_copy(
        update={
            "namespace": f"replay-{manifest.name}",
            "record_dir": tmp_path_factory.mktemp("records"),
            "record_rate": 1.0,
        }
    )
    with connect(settings, shared_redis_server.url) as redis:
        store = StateStore(redis, Keys(settings.namespace))
        publish(run.bundle, run.prepared, store)
        store.activate(manifest.version, manifest.fingerprint)
        with serving(settings) as client:
            for path, body in asked(run):
                assert client.post(path, json=body).status_code == 200
    return settings.record_dir


@pytest.fixture
def command(run, monkeypatch, capsys):
    """Run the command; gives its exit code, its report for people and the one for programs."""
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(run.bundles.parent))

    def call(*arguments):
        code = main(["replay", *map(str, arguments)])
        said = capsys.readouterr().out.splitlines()
        return code, "\n".join(said[:-1]), json.loads(said[-1]) if said else None

    return call


@pytest.fixture
def changed(served, tmp_path):
    """A copy of the records in which the first that a test chooses is changed."""

    def change(choose, alter):
        (file,) = served.iterdir()
        records = [json.loads(line) for line in file.read_bytes().splitlines()]
        alter(next(one for one in records if choose(one)))
        path = tmp_path / "changed.jsonl"
        path.write_text("".join(f"{json.dumps(one)}\n" for one in records))
        return path

    return change


tokens_alone = pytest.mark.parametrize("run", ["tiny"], indirect=True, scope="module")
"""What is the same for every kind of state."""


def any_of_them(record):
    return len(record["scores"]) > 1


def test_what_was_served_is_what_onnx_and_torch_compute(run, served, command):
    """All records of a real service replay within the tolerance, in all three columns, and the command ends with 0."""
    code, table, found = command(served, "--run", run.run, "--torch")
    assert code == 0
    assert found["records"] == 27
    assert found["scores"] == found["torch_scores"] > 700
    assert found["versions"] == [run.bundle.manifest.version]
    assert (found["differing"], found["first"], found["without_torch"]) == (0, None, {})
    assert found["served_onnx"]["max_abs"] <= 1e-6
    assert 0 < found["onnx_torch"]["max_abs"] <= 1e-5
    asked_for = {record.request_id: record.request.item_ids for record in read_records([served])}
    assert found["onnx_torch"]["item_id"] in asked_for[found["onnx_torch"]["request_id"]]
    assert "all scores within the tolerance" in table


@tokens_alone
def test_a_smaller_tolerance_is_not_met(run, served, command):
    """What is rounding by default is a difference by a tolerance below it, of the graph's run and no input."""
    code, table, found = command(served, "--run", run.run, "--tolerance", "1e-12")
    assert code == 1
    assert found["first"]["between"] == "ONNX and torch"
    assert "all its inputs are equal" in table


@tokens_alone
def test_without_the_run_torch_is_left_out(served, command, tmp_path, capsys):
    """Where there is no run, the report says so and has the other two columns; asked for, torch is an error."""
    code, table, found = command(served, "--run", tmp_path)
    assert (code, found["onnx_torch"], found["torch_scores"]) == (0, None, 0)
    assert "torch left out" in table
    assert list(found["without_torch"]) == found["versions"]
    code, _, found = command(served, "--no-torch")
    assert (code, found["without_torch"], found["torch_scores"]) == (0, {}, 0)
    assert main(["replay", str(served), "--run", str(tmp_path), "--torch"]) == 1
    assert "name its folder with --run" in capsys.readouterr().err


def test_another_run_is_not_taken_for_the_bundles(run, served, request, command):
    """A run whose weights are others than the bundle's is not compared with, and the report says whose they are."""
    other = request.getfixturevalue("tiny_sequence" if run.config.name == "tiny" else "tiny")
    code, _, found = command(served, "--run", other.run)
    assert (code, found["torch_scores"]) == (0, 0)
    assert run.bundle.manifest.fingerprint[:12] in next(iter(found["without_torch"].values()))


@tokens_alone
def test_a_changed_value_is_named(run, changed, command):
    """A request whose context is another than what was scored: the score differs, and the feature is named with both codes."""
    hours = run.bundle.transforms.vocabularies["context.hour"].values
    known = {hour.decode() for hour in hours}
    before = {}

    def alter(record):
        before.update(codes=record["context_codes"][0])
        was = str(record["request"]["context"]["hour"])
        record["request"]["context"]["hour"] = int(next(iter(sorted(known - {was}))))

    path = changed(lambda one: str(one["request"].get("context", {}).get("hour")) in known, alter)
    code, table, found = command(path, "--no-torch")
    assert (code, found["differing"]) == (1, 1)
    first = found["first"]
    assert (first["cause"], first["served"]) == ("context.hour", before["codes"][:1])
    assert first["served"] != first["replayed"]
    assert first["value"] in {int(hour) for hour in known}
    assert f"context.hour = {first['value']}" in table


@tokens_alone
@pytest.mark.parametrize(
    ("choose", "codes", "place", "named", "value"),
    [
        (any_of_them, "context_codes", (0, 1), "context.device", "?"),
        (any_of_them, "item_codes", (1, 2), "item.brand", None),
        (any_of_them, "item_codes", (1, 4), "item.tags", None),
        (lambda one: "items" in one["request"], "item_codes", (1, 3), "item.tags", NEW["tags"]),
        (lambda one: "user_features" in one["request"], "user_codes", (0,), "user.age_group", "?"),
        (any_of_them, "user_codes", (1,), "user.region", None),
        (
            lambda one: "candidate_features" in one["request"],
            "context_codes",
            (1, 0),
            "context.hour",
            2,
        ),
    ],
)
def test_a_code_that_the_transforms_do_not_give_is_named(
    changed, command, choose, codes, place, named, value
):
    """A code that the service had, and the transforms do not give, is named by its feature, whatever the scores say."""

    def alter(record):
        *row, column = place
        at = record[codes][row[0]] if row else record[codes]
        at[column] += 1

    code, _, found = command(changed(choose, alter), "--no-torch")
    assert (code, found["differing"]) == (1, 1)
    assert (found["first"]["cause"], found["first"]["value"]) == (named, value)


@tokens_alone
def test_a_changed_score_is_found(changed, command):
    """A score that no input accounts for is found, with its size, request and candidate."""

    def alter(record):
        record["scores"][1] += 0.01
        where.update(request_id=record["request_id"], item_id=record["request"]["item_ids"][1])

    where = {}
    code, table, found = command(changed(any_of_them, alter), "--no-torch")
    assert code == 1
    assert found["served_onnx"] == where | {"max_abs": pytest.approx(0.01, abs=1e-5)}
    assert found["first"]["between"] == "served and ONNX"
    assert "all its inputs are equal" in table


@tokens_alone
def test_another_item_vector_is_named(changed, command):
    """Where the codes are equal and the service scored with another vector of the item, that is named."""

    def alter(record):
        record["scores"][1] += 0.01
        record["item_vectors"][1] ^= 1

    code, _, found = command(changed(any_of_them, alter), "--no-torch")
    assert (code, found["first"]["cause"]) == (1, "the item vector")


def test_a_damaged_state_is_named(changed, command):
    """A state whose checksum does not hold is never scored with; the record counts as one that differs."""

    def alter(record):
        state = bytearray(base64.urlsafe_b64decode(record["state"]))
        state[-1] ^= 1
        record["state"] = base64.urlsafe_b64encode(state).decode()

    code, table, found = command(changed(lambda one: one["state"] is not None, alter), "--no-torch")
    assert (code, found["differing"], found["first"]["cause"]) == (1, 1, "the state")
    assert "the checksum does not hold" in table


@tokens_alone
def test_a_request_that_the_transforms_refuse_is_named(changed, command):
    """A feature that the service took and the transforms do not know is a difference, and no crash."""

    def alter(record):
        record["request"]["context"] = {"weather": "fine"}

    code, _, found = command(changed(any_of_them, alter), "--no-torch")
    assert (code, found["first"]["cause"]) == (1, "context.weather")


@tokens_alone
def test_a_graph_that_is_not_the_torch_model_is_found(run, served):
    """Where torch gives other scores, the differences are counted, and the first of each ten records is told."""
    reference = Reference.of(run.bundle.manifest, run.run)

    def other(*inputs):
        return reference(*inputs) + np.float32(0.001)

    report = replay(read_records([served]), run.bundles, lambda _: other)
    assert report.differing == report.records
    assert len(report.findings) == 10
    assert {one.between for one in report.findings} == {"ONNX and torch"}
    assert report.onnx_torch.max_abs == pytest.approx(0.001, abs=1e-5)


@tokens_alone
def test_records_of_another_model_are_refused(changed, command, capsys):
    """A record whose bundle is not here, or here is another model, ends the command, and so does a folder without records."""

    def another_version(record):
        record["model_version"] = "elsewhere"

    def another_model(record):
        record["fingerprint"] = "f" * 64

    for alter, message in (
        (another_version, "no version 'elsewhere'"),
        (another_model, "with the fingerprint ffff"),
    ):
        path = changed(any_of_them, alter)
        assert main(["replay", str(path), "--no-torch"]) == 1
        assert message in capsys.readouterr().err
    code, _, found = command(path := changed(any_of_them, another_version), "--only", "elsewhere")
    assert (code, found) == (1, None)
    path.write_bytes(b"")
    assert main(["replay", str(path)]) == 1
    assert "no records" in capsys.readouterr().err


@tokens_alone
def test_a_line_that_is_being_written_is_left_out(served, tmp_path):
    """A last line that is cut off is no record and no error; any other line that is none is named."""
    (file,) = served.iterdir()
    whole = file.read_bytes()
    records = list(read_records([file]))
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(whole[:-100])
    assert list(read_records([copy])) == records[:-1]
    copy.write_bytes(whole + b"{}\n")
    with pytest.raises(DataError, match=f"copy.jsonl:{len(records) + 1}: no record: at_ms: Field required"):
        list(read_records([copy]))
    spoilt = json.loads(whole.splitlines()[0])
    spoilt["scores"].append(0.5)
    copy.write_text(json.dumps(spoilt) + "\n")
    with pytest.raises(DataError, match=r"copy.jsonl:1: .*scores has 2 values for 1 item_ids"):
        list(read_records([copy]))

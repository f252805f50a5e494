"""AUC by refresh delay: each row is scored from the state that a slower refresh would have left, and from no other."""

import json

import numpy as np
import polars as pl
import pytest

from srp4ctr.contract.errors import DataError
from srp4ctr.runtime.metrics import evaluate_rows
from srp4ctr_offline.checkpoint import load_model
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.predict import Condition, predict
from srp4ctr_offline.prepared import TEST
from srp4ctr_offline.study.delays import AT_ONCE, BEHIND, NIGHTLY, delays, main, nightly_cuts

DAY_S = 86_400


@pytest.fixture(scope="module")
def found(tiny):
    """The small run under every delay, all of its test rows."""
    return delays(tiny.bundle, tiny.config, tiny.prepared)


def with_tables(config: RunConfig, folder, change, **features) -> RunConfig:
    """The configuration with changed copies of its tables of events and rows, and other features."""
    for name in ("events", "rows", "items", "users"):
        table = pl.read_parquet(config.tables.folder / f"{name}.parquet")
        (change(table) if name in ("events", "rows") else table).write_parquet(folder / f"{name}.parquet")
    return config.model_copy(
        update={
            "tables": config.tables.model_copy(update={"folder": folder}),
            "features": config.features.model_copy(update=features),
        }
    )


def test_each_delay_is_what_the_trained_model_gives_without_those_events(tiny, found) -> None:
    """The graphs under a delay and torch without the user's latest events agree."""
    model = load_model(tiny.run / "finetune", "finetune", tiny.config, tiny.prepared)
    rows = tiny.prepared.rows.of(TEST)
    label, user = tiny.prepared.rows.label[rows], tiny.prepared.rows.user[rows]
    assert set(found.quality) == {AT_ONCE, *map(str, BEHIND), NIGHTLY}
    assert found.rows == len(rows)
    for behind in (0, *BEHIND):
        condition = Condition(missing_events=behind, state_dtype="float16")
        expected = evaluate_rows(label, user, predict(model, tiny.prepared, rows, condition), draws=1)
        # Not the mean over users: there rounding turns single pairs round, which are much of a user's few.
        own = found.quality[str(behind)].value
        np.testing.assert_allclose(own[[0, 2, 3]], expected.value[[0, 2, 3]], atol=2e-4)
    # Scores do depend on what is missing; that they become worse is for a model that was trained for more than a moment.
    logloss = [found.quality[str(behind)].value[2] for behind in (0, *BEHIND)]
    assert len(set(logloss)) == len(logloss)
    assert found.events["16"] < found.events["4"] < found.events[AT_ONCE]


def test_a_nightly_state_has_nothing_of_the_rows_day(tiny) -> None:
    """A row sees the events of its user that happened before its own day began, in UTC, and no later one."""
    rows = tiny.prepared.rows.of(TEST)
    cuts = nightly_cuts(tiny.config, tiny.prepared, rows)
    folder = tiny.config.tables.folder
    events = pl.read_parquet(folder / "events.parquet")
    times = {user[0]: own["timestamp"].sort().to_numpy() for user, own in events.group_by("user_id")}
    table = pl.read_parquet(folder / "rows.parquet")[rows]
    for user, moment, cut in zip(table["user_id"], table["timestamp"], cuts.tolist(), strict=True):
        own = times.get(user, np.empty(0))
        assert cut == (own // DAY_S < moment // DAY_S).sum()
    assert (cuts <= tiny.prepared.rows.cut[rows]).all()
    assert (cuts < tiny.prepared.rows.cut[rows]).any()


def test_times_need_no_name_in_the_configuration(tiny, tmp_path) -> None:
    """A column of times that the configuration does not name is found, by its usual name."""
    rows = tiny.prepared.rows.of(TEST)
    unnamed = with_tables(tiny.config, tmp_path, lambda table: table, timestamp=None)
    np.testing.assert_array_equal(
        nightly_cuts(unnamed, tiny.prepared, rows), nightly_cuts(tiny.config, tiny.prepared, rows)
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.drop("timestamp"), "lacks the column 'timestamp'"),
        (
            lambda table: table.with_columns(
                pl.when(pl.col("timestamp") < pl.col("timestamp").max()).then("timestamp")
            ),
            "the column 'timestamp' lacks some",
        ),
        (lambda table: table.head(len(table) - 1), "other rows or events than were prepared"),
    ],
)
def test_no_nightly_delay_without_all_times(tiny, tmp_path, change, reason) -> None:
    """Where times are missing, or the tables are others, nothing is guessed: the nightly AUC is null, and it is said why."""
    config = with_tables(tiny.config, tmp_path, change, timestamp=None)
    rows = tiny.prepared.rows.of(TEST)
    with pytest.raises(DataError, match=reason):
        nightly_cuts(config, tiny.prepared, rows)
    told = delays(tiny.bundle, config, tiny.prepared, max_rows=200)
    assert told.auc()[NIGHTLY] is None
    assert reason in told.table()
    assert told.auc()[AT_ONCE] is not None


def test_what_is_written_is_what_was_measured(tiny, found, tmp_path, monkeypatch, capsys) -> None:
    """The command writes its stage into the run and ends with the same as one line of JSON."""
    run = tmp_path / "run"
    for stage in ("prepared", "export"):
        (run / stage).parent.mkdir(exist_ok=True)
    (run / "prepared").symlink_to(tiny.run / "prepared")
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(tiny.bundles.parent))
    with pytest.raises(DataError, match="srp4ctr export CONFIG"):
        main([str(tiny.config_path), "--run", str(run)])
    (run / "export").mkdir()
    (run / "export" / "metrics.json").write_text(json.dumps({"version": tiny.bundle.manifest.version}))
    assert main([str(tiny.config_path), "--run", str(run)]) == 0
    written = json.loads((run / "delays" / "metrics.json").read_bytes())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == written
    assert written["auc_by_delay"] == found.auc()
    assert list(written["auc_by_delay"]) == [AT_ONCE, *map(str, BEHIND), NIGHTLY]
    assert written["no_nightly"] is None

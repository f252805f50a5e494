"""What is there of each protocol of a study: planned cells, records, and the predictions to compare."""

import hashlib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import polars as pl

from srp4ctr.nn.baselines import BASELINES
from srp4ctr.runtime.metrics import Floats
from srp4ctr_offline import floors, rates
from srp4ctr_offline.checkpoint import new_model
from srp4ctr_offline.prepare import prepare
from srp4ctr_offline.prepared import TEST, Ints, Prepared
from srp4ctr_offline.study.compare import Compared, Spread, spread
from srp4ctr_offline.study.plan import Cell, StudyPlan
from srp4ctr_offline.study.results import Results, source_of

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Measured:
    """One protocol; models are in the plan's order, and those without a record have no place in `records`."""

    protocol: str
    measure: str
    reference: str
    cells: dict[str, dict[int, Cell]]
    records: dict[str, dict[int, Record]]
    prepared: Prepared | None = None
    rows: Ints | None = None
    compared: Compared | None = None
    """Where `measure` is "rows" and a cell is finished; `prepared` and its test `rows` are there then, too."""

    def missing(self, finished: Collection[str]) -> dict[str, list[int]]:
        """Seeds that are planned and whose cells' keys are not among the finished ones, by model."""
        absent = {
            name: [seed for seed, cell in seeds.items() if cell.key not in finished]
            for name, seeds in self.cells.items()
        }
        return {name: seeds for name, seeds in absent.items() if seeds}

    def valid_auc(self, name: str) -> Spread:
        """AUC on the validation rows, by which everything is chosen, of a model's single seeds."""
        return spread(one["valid"]["auc"] for one in self.records[name].values())

    def valid_difference(self, name: str) -> float | None:
        """The reference's AUC on the validation rows minus this model's, means of single seeds; None without a record of both."""
        if not {self.reference, name} <= self.records.keys():
            return None
        return self.valid_auc(self.reference).mean - self.valid_auc(name).mean

    def without_predictions(self) -> list[str]:
        """Finished cells of rows whose predictions are gone, by `model seed`."""
        if self.compared is None:
            return []
        kept = self.compared.probabilities
        return [
            f"{name} {seed}"
            for name, seeds in self.records.items()
            for seed in seeds
            if seed not in kept.get(name, {})
        ]


def load_measured(plan: StudyPlan, results: Results) -> list[Measured]:
    """All protocols of the plan; of results of changed configurations nothing is read."""
    cells: dict[str, dict[str, dict[int, Cell]]] = {
        protocol: {name: {} for name in part.models} for protocol, part in plan.protocols.items()
    }
    for cell in plan.cells():
        cells[cell.protocol][cell.model][cell.seed] = cell
    finished = results.records()
    return [
        _measured(protocol, part.measure, plan.reference, cells[protocol], finished, results)
        for protocol, part in plan.protocols.items()
    ]


def _measured(
    protocol: str,
    measure: str,
    reference: str,
    cells: dict[str, dict[int, Cell]],
    finished: dict[str, Record],
    results: Results,
) -> Measured:
    records: defaultdict[str, dict[int, Record]] = defaultdict(dict)
    for name, seeds in cells.items():
        for seed, cell in seeds.items():
            if cell.key in finished:
                records[name][seed] = finished[cell.key]
    found = Measured(protocol, measure, reference, cells, dict(records))
    if measure != "rows" or not records:
        return found
    # Models may differ in the features that they see, never in the rows: `Results.predictions` checks it.
    name = reference if reference in cells else next(iter(records))
    first = next(iter(cells[name].values()))
    prepared = prepared_of(first, results)
    rows = prepared.rows.of(TEST)
    row_id = prepared.rows.row_id[rows]
    probabilities: defaultdict[str, dict[int, Floats]] = defaultdict(dict)
    for model, seeds_of in records.items():
        for seed in seeds_of:
            probability = results.predictions(cells[model][seed].key, row_id)
            if probability is not None:
                probabilities[model][seed] = probability
    compared = Compared(
        reference=reference,
        label=prepared.rows.label[rows],
        user=prepared.rows.user[rows],
        figures={model: {seed: one["test"] for seed, one in of.items()} for model, of in records.items()},
        probabilities=dict(probabilities),
        floors=load_floors(results, first, prepared, rows),
    )
    sized = {name: _with_state_bytes(of, cells[name], results) for name, of in records.items()}
    return Measured(protocol, measure, reference, cells, sized, prepared, rows, compared)


def _with_state_bytes(
    records: dict[int, Record], cells: dict[int, Cell], results: Results
) -> dict[int, Record]:
    """The records with the bytes of a stored state, the mean over users: by today's layout, and not that of the record."""
    cell = cells[min(records)]
    if cell.plan.kind in BASELINES:
        return {seed: record | {"state_bytes": None} for seed, record in records.items()}
    prepared = prepared_of(cell, results)
    size = round(prepared.mean_state_bytes(new_model(cell.config, prepared).state_layout))
    return {seed: record | {"state_bytes": size} for seed, record in records.items()}


def prepared_of(cell: Cell, results: Results) -> Prepared:
    """The cell's prepared data, made again where the results came without them."""
    folder = results.prepared_folder(cell)
    if not (folder / "report.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        prepare(cell.config).save(folder)
    return Prepared.load(folder)


def load_floors(results: Results, cell: Cell, prepared: Prepared, rows: Ints) -> dict[str, Floats]:
    """Predictions of the floors, computed once by their code and kept: `predictions/floors-<protocol>-<data>-<code>.parquet`."""
    digest = hashlib.sha256(source_of(floors, rates)).hexdigest()
    name = f"floors-{cell.protocol}-{cell.data_key}-{digest[:8]}.parquet"
    path = results.folder / "predictions" / name
    row_id = pl.Series("row_id", prepared.rows.row_id[rows])
    if path.exists():
        frame = pl.read_parquet(path)
        if frame["row_id"].equals(row_id):
            return {name: frame[name].to_numpy() for name in floors.FLOORS}
    found = {name: floor(prepared, rows) for name, floor in floors.FLOORS.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"row_id": row_id, **found}).write_parquet(path)
    return found

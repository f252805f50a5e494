"""The report's section on next-item ranking, beside published figures of the same protocol."""

from pathlib import Path

from srp4ctr_offline.study.compare import spread
from srp4ctr_offline.study.entries import cpu_minutes
from srp4ctr_offline.study.markdown import (
    NONE,
    bullets,
    image,
    minutes_text,
    number,
    padding_text,
    table,
    with_deviation,
)
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.next_item import NEGATIVES, TOP
from srp4ctr_offline.study.plots import plot_training
from srp4ctr_offline.study.summary import pretraining_setup

_S3 = "published: Zhou et al., CIKM 2020, arXiv 2008.07873"
_RERUN = "published: its authors' rerun, github.com/RUCAIBox/CIKM2020-S3Rec"
_TIGER = "published: Rajput et al., NeurIPS 2023, arXiv 2305.05065"

# Model, HR@10 and NDCG@10 against 99 negatives, the same against all items, source; by a part of the protocol's name.
ANCHORS: dict[str, list[tuple[str, float | None, float | None, float | None, float | None, str]]] = {
    "beauty": [
        ("SASRec", 0.4696, 0.3156, None, None, _S3),
        ("FDSA", 0.5096, 0.3324, None, None, _S3),
        ("S3-Rec", 0.5506, 0.3732, None, None, _S3),
        ("S3-Rec", 0.5687, 0.3816, None, None, _RERUN),
        ("SASRec", None, None, 0.0605, 0.0318, _TIGER),
        ("S3-Rec", None, None, 0.0647, 0.0327, _TIGER),
    ]
}
FIGURES = ("hr10", "ndcg10", "hr10_all", "ndcg10_all")


def next_item_section(measured: Measured, plots: Path) -> list[str]:
    """Our cells, mean over seeds, and the anchors."""
    blocks = [
        f"## {measured.protocol}",
        (
            f"Next item, leave one out: a user's last event is the test target, the one before it the validation target. "
            f"Pre-training alone, the encoder and its item head, ranks it against {NEGATIVES} items drawn uniformly from those that the user never "
            f"had, and against all items but the user's own earlier ones; hit rate and NDCG of the first {TOP}, mean ± "
            "standard deviation over seeds. Users whose target was in no training event, and so has no id, are left out."
        ),
        *pretraining_setup(measured),
        "### Models",
        table(
            [
                "model",
                f"HR@{TOP}, {NEGATIVES} negatives",
                f"NDCG@{TOP}",
                f"HR@{TOP}, all items",
                f"NDCG@{TOP}",
                "seeds",
                "CPU minutes",
                "padding",
                "source",
            ],
            [*_our_rows(measured), *_anchor_rows(measured)],
        ),
    ]
    users = {one["test"]["users"] for of in measured.records.values() for one in of.values()}
    if users:
        blocks.append(
            bullets(
                [
                    f"Test users: {', '.join(f'{one:,}' for one in sorted(users))}.",
                    (
                        "So many users give a hit rate near .5 a 95 % interval of "
                        f"± {number(1.96 * 0.5 / min(users) ** 0.5)}, beside what seeds differ by."
                    ),
                    (
                        "The negatives of the published figures are other draws, and the published code is not ours: "
                        "differences of a few thousandths say nothing."
                    ),
                ]
            )
        )
    curves = {
        name: [record["history"]["pretrain"] for record in of.values()]
        for name, of in measured.records.items()
    }
    if curves:
        path = plots / f"{measured.protocol}-training.png"
        plot_training(curves, "total", path, "pre-training loss, all parts")
        blocks.append(image(f"{plots.name}/{path.name}", f"{measured.protocol}: pre-training loss by epoch"))
    return blocks


def _our_rows(measured: Measured) -> list[list[str]]:
    rows = []
    for name, records in measured.records.items():
        tests = [one["test"] for one in records.values()]
        rows.append(
            [
                name,
                *(with_deviation(spread(test[figure] for test in tests)) for figure in FIGURES),
                f"{len(records)} of {len(measured.cells[name])}",
                minutes_text(spread(cpu_minutes(one) for one in records.values()).mean),
                padding_text(records.values()),
                "this study",
            ]
        )
    return rows


def _anchor_rows(measured: Measured) -> list[list[str]]:
    return [
        [name, *(number(value) for value in values), NONE, NONE, NONE, source]
        for part, anchors in ANCHORS.items()
        if part in measured.protocol
        for name, *values, source in anchors
    ]

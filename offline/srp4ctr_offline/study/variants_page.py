"""The page of the scorer's variants; every number is the run's own."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from srp4ctr_offline.study.markdown import bullets, difference_text, number
from srp4ctr_offline.study.markdown import table as markdown

INTRODUCTION = """\
# The scorer's graph in other ways

Written by `make bench-variants`; do not edit. One user's state and so many candidates to probabilities, item vectors or codes taken
out of the item table: CPU milliseconds of the default with one thread, and the others as multiples of it, the median over
{rounds} rounds in which all took turns in one process. Load: CPU milliseconds to open its sessions, once. AUC on all test rows minus the
default's, with the paired bootstrap interval (95 %), and the largest difference of any probability.
"""


def page(content: Mapping[str, Any]) -> str:
    """Markdown."""
    about = bullets(
        [
            f"date: {content['date']}",
            f"ONNX Runtime {version('onnxruntime')}, {platform.system()}, Python {platform.python_version()}, one thread",
        ]
    )
    parts = [INTRODUCTION.format(rounds=content["rounds"]).rstrip("\n"), about]
    for model in content["models"]:
        default = model["variants"][0]
        parts += [
            f"## `{model['state']}`: {model['model']}",
            f"{model['test_rows']:,} test rows, the default's AUC {number(default['auc'])}.",
            table(model["variants"]),
        ]
    ways = content["models"][0]["variants"]
    parts.append(bullets(f"`{one['variant']}`: {one['what']}" for one in ways))
    return "\n\n".join(parts) + "\n"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each variant; the first is the default."""
    counts = list(found[0]["cpu_ms"])
    head = ["", *counts, "load, ms", "AUC minus default", "probability"]
    rows = []
    for place, one in enumerate(found):
        cpu = [
            number(one["cpu_ms"][c], 3) + " ms" if not place else number(one["ratio"][c], 2) for c in counts
        ]
        gap = one["auc_minus_default"]
        auc = difference_text(gap, 5) if place else ""
        moved = f"{one['probability_max_abs']:.1e}" if place else ""
        rows.append([one["variant"], *cpu, f"{one['load_cpu_ms']:.0f}", auc, moved])
    return markdown(head, rows)

"""`make demo`: the whole chain on MovieLens 100K, by the commands that a person would type.

A stage whose inputs have not changed since it last ran is not run again. Leaves `var/demo.json`.
"""

import argparse
import contextlib
import json
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import polars as pl

from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.serving import free_port, running_service
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.config import RunConfig, load_config
from srp4ctr_offline.evaluate import format_table
from srp4ctr_offline.pipeline import TRAINING, release
from srp4ctr_offline.run import write_json
from srp4ctr_offline.stages import Stages

CONFIG = Path("configs/movielens-100k.toml")
USER = "196"
CANDIDATES = 40
PORT = 8000
"""Where the demonstration serves, if it is free."""


def sample_request(config: RunConfig, user_id: str) -> tuple[dict[str, Any], pl.DataFrame, pl.DataFrame]:
    """A request for the most rated films that the user has not rated; the films' table, and the user's latest."""
    folder = config.tables.folder
    items = pl.read_parquet(folder / config.tables.items).with_columns(pl.col("item_id").cast(pl.String))
    events = pl.read_parquet(folder / config.tables.events).with_columns(
        pl.col("user_id", "item_id").cast(pl.String)
    )
    own = events.filter(pl.col("user_id") == user_id).sort("order")
    unrated = (
        events.join(own, on="item_id", how="anti")
        .group_by("item_id")
        .len()
        .sort("len", "item_id", descending=True)
    )
    request = {
        "user_id": user_id,
        "item_ids": unrated["item_id"].head(CANDIDATES).to_list(),
        "context": {"hour": 20, "weekday": 4},
        "deadline_ms": 200,
    }
    return request, items, own.join(items, on="item_id", how="left", maintain_order="left").tail(8)


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST a JSON body and give the JSON answer."""
    request = urllib.request.Request(  # noqa: S310 -- our own address
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        parsed: dict[str, Any] = json.loads(answer.read())
    return parsed


def show(answer: dict[str, Any], request: dict[str, Any], items: pl.DataFrame, latest: pl.DataFrame) -> None:
    """Print the user's latest ratings and the scored films, best first."""
    print(f"\nUser {request['user_id']} rated last:")
    for row in latest.iter_rows(named=True):
        print(f"  {row['rating']} stars  {row['title']} ({row['release_year']}; {', '.join(row['genres'])})")
    scored = pl.DataFrame({"item_id": request["item_ids"], "score": answer["scores"]})
    scored = scored.join(items, on="item_id", how="left").sort("score", descending=True)
    print(
        f"\nPOST /score of {len(scored)} films that the user has not rated, by the chance of 4 stars or more:"
    )
    rows = list(scored.iter_rows(named=True))
    for place, row in enumerate(rows, 1):
        if place <= 10 or place > len(rows) - 5:
            print(
                f"  {place:>3}. {row['score']:.3f}  {row['title']} ({row['release_year']}; {', '.join(row['genres'])})"
            )
        elif place == 11:
            print("       ...")
    state = answer["user_state"]
    print(
        f"model {answer['model_version']}, user state {state['status']}, tier {answer['tier']}, "
        f"degraded {answer['degraded'] or 'no'}, request {answer['request_id']}"
    )


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop the service in the end")
    once = parser.parse_args().once
    # So that the service is stopped however this process is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = read_settings(StoreSettings)
    var = settings.var_dir
    config = load_config(CONFIG)
    run = settings.runs_dir / config.name
    stages = Stages(var / "demo-stages.json")
    # What was just trained is what is shown, also where somebody tries a configuration that is worse than the one before.
    release(CONFIG, stages, settings, data="movielens-100k", gate=False)
    request, items, latest = sample_request(config, USER)
    port = free_port(PORT)
    print(f"\n== srp4ctr serve --port {port}", flush=True)
    with running_service(port) as service:
        url = service.url
        answer = post(f"{url}/score", request)
        metrics = json.loads((run / TRAINING["evaluate"]).read_bytes())
        print(f"\n{format_table(metrics)}")
        show(answer, request, items, latest)
        quality = {name: metrics[name] for name in ("auc", "gauc", "logloss", "ece")}
        baselines = {name: {"auc": row["auc"]} for name, row in metrics["baselines"].items()}
        summary = {"url": url, "request": request, "answer": answer, "seconds": stages.seconds}
        write_json(var / "demo.json", quality | {"baselines": baselines} | summary)
        print(f"\nall of this as JSON: {var / 'demo.json'}; pictures: {run}/*/*.png")
        if not once:
            print(f"serving at {url} (try {url}/docs) until Ctrl-C", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("demo", main))

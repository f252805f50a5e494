"""`make demo`: the whole chain on MovieLens 100K, by the commands that a person would type.

A stage whose inputs have not changed since it last ran is not run again. Leaves `var/demo.json`.
"""

import argparse
import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

import srp4ctr
import srp4ctr_offline
from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.config import RunConfig, load_config
from srp4ctr_offline.evaluate import format_table
from srp4ctr_offline.run import write_json

CONFIG = Path("configs/movielens-100k.toml")
USER = "196"
CANDIDATES = 40
TRAINING = ("prepare", "pretrain", "finetune", "evaluate", "export")
START_LIMIT_S = 60.0


class Stages:
    """Runs `srp4ctr` commands, remembers how long each took and on what it was run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage when it last ran."""
        return {name: stage["seconds"] for name, stage in self._done.items()}

    def run(self, command: list[str], inputs: str | None = None) -> None:
        """Run one command; one that last succeeded on the same `inputs` is left out."""
        name = command[0]
        if inputs is not None and self._done.get(name, {}).get("inputs") == inputs:
            print(f"\n== srp4ctr {' '.join(command)}: unchanged, {self.seconds[name]:.0f} s when it ran")
            return
        print(f"\n== srp4ctr {' '.join(command)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "srp4ctr.cli", *command], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        self._done[name] = {"inputs": inputs, "seconds": round(time.monotonic() - began, 1)}
        write_json(self._path, self._done)


def inputs_of_training(config: Path) -> str:
    """A hash of all that decides the trained model: configuration, data and our own code."""
    sha = hashlib.sha256(config.read_bytes())
    for package in (srp4ctr, srp4ctr_offline):
        assert package.__file__ is not None
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            sha.update(path.read_bytes())
    report = load_config(config).tables.folder / "report.json"
    sha.update(report.read_bytes())
    return sha.hexdigest()


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


@contextlib.contextmanager
def service(port: int) -> Iterator[str]:
    """`srp4ctr serve`, running and ready; gives its address."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "srp4ctr.cli", "serve", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command) as process:
        try:
            give_up_at = time.monotonic() + START_LIMIT_S
            while not _ready(url):
                if process.poll() is not None:
                    raise SystemExit("the service ended before it was ready; its log stands above")
                if time.monotonic() > give_up_at:
                    raise SystemExit(f"the service was not ready within {START_LIMIT_S:.0f} s")
                time.sleep(0.2)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 -- our own address
            ready: bool = answer.status == 200
    except OSError:
        return False
    return ready


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST a JSON body and give the JSON answer."""
    request = urllib.request.Request(  # noqa: S310 -- our own address
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        parsed: dict[str, Any] = json.loads(answer.read())
    return parsed


def free_port(preferred: int = 8000) -> int:
    """The preferred port, or any other where it is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise SystemExit("no free port on 127.0.0.1")


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
    var = read_settings(StoreSettings).var_dir
    config = load_config(CONFIG)
    run_folder = read_settings(StoreSettings).runs_dir / config.name
    stages = Stages(var / "demo-stages.json")
    stages.run(["data", "movielens-100k", "--out", str(config.tables.folder)])
    inputs = inputs_of_training(CONFIG)
    for stage in TRAINING:
        stages.run([stage, str(CONFIG)], inputs)
    version = json.loads((run_folder / "export" / "metrics.json").read_bytes())["version"]
    stages.run(["publish", version])
    stages.run(["activate", version])
    request, items, latest = sample_request(config, USER)
    port = free_port()
    print(f"\n== srp4ctr serve --port {port}", flush=True)
    with service(port) as url:
        answer = post(f"{url}/score", request)
        metrics = json.loads((run_folder / "evaluate" / "metrics.json").read_bytes())
        print(f"\n{format_table(metrics)}")
        show(answer, request, items, latest)
        quality = {name: metrics[name] for name in ("auc", "gauc", "logloss", "ece")}
        baselines = {name: {"auc": row["auc"]} for name, row in metrics["baselines"].items()}
        summary = {"url": url, "request": request, "answer": answer, "seconds": stages.seconds}
        write_json(var / "demo.json", quality | {"baselines": baselines} | summary)
        print(f"\nall of this as JSON: {var / 'demo.json'}; pictures: {run_folder}/*/*.png")
        if not once:
            print(f"serving at {url} (try {url}/docs) until Ctrl-C", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Srp4ctrError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)

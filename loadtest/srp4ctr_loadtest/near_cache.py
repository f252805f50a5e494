"""`python -m srp4ctr_loadtest.near_cache`: how many reads of user states the near cache answers, by users, popularity and its size.

The service's own near cache is asked for drawn users, on a clock of its own: nothing else of a service takes part. Users are
popular by Zipf's law; after a share of the requests the user acts, and what is kept of that user is dropped twice, as Redis has it
dropped when the event is stored and when the new state is. Prints a table of hit rates.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srp4ctr.runtime.near_cache import ENTRIES, KEEP_S, NearCache
from srp4ctr_loadtest.load.workload import Zipf

NAME = "near-cache.md"
USERS = (10_000, 100_000, 1_000_000)
SKEWS = (0.8, 1.0, 1.2)
SIZES = (ENTRIES, 10 * ENTRIES)
ACT_SHARE = 0.2
REQUESTS_PER_S = 500.0
SECONDS = 600.0
"""Counted after as long to warm up, twice the time that a state is kept: the rate no longer depends on the beginning."""


@dataclass(frozen=True)
class Traffic:
    """Requests to one process: of so many users, with Zipf's exponent, and how many of the requests an event follows."""

    users: int
    skew: float
    act_share: float = ACT_SHARE
    requests_per_s: float = REQUESTS_PER_S
    seconds: float = SECONDS


def hit_rate(traffic: Traffic, size: int, seed: int = 0) -> float:
    """The part of the reads that a cache of `size` states answers."""
    random = np.random.default_rng(seed)
    count = round(traffic.requests_per_s * traffic.seconds)
    drawn = Zipf(traffic.users, traffic.skew, random).draw(random, 2 * count)
    acts = random.random(2 * count) < traffic.act_share
    now = 0.0
    cache = NearCache(size, KEEP_S, lambda: now)
    hits = 0
    for place, (user, act) in enumerate(zip(drawn.tolist(), acts.tolist(), strict=True)):
        now = place / traffic.requests_per_s
        key, beside = f"state:{user}", f"counted:{user}"
        if cache.get(key) is not None:
            hits += place >= count
        else:
            cache.put(key, beside, cache.read(b"state", b"counted"))
        if act:
            # The event is counted; the state follows so soon that nobody asks in between.
            cache.drop(beside)
            cache.drop(key)
    return hits / count


def page(sizes: Sequence[int], traffics: Sequence[Traffic]) -> str:
    """The hit rates in Markdown."""
    first = traffics[0]
    about = (
        f"Written by `python -m srp4ctr_loadtest.near_cache --out docs/benchmarks`; do not edit. The service's own near cache, asked "
        f"for drawn users: {first.requests_per_s:g} requests a second to one process, {first.act_share:.0%} of them followed by an "
        f"event of the user, a state kept for {KEEP_S:g} s at most (`SRP4CTR_NEAR_CACHE_S`). `srp4ctr_near_cache_reads_total` counts "
        "the hits and misses of a service."
    )
    lines = ["# Hit rates of the near cache", "", about, ""]
    lines += [
        "| users | Zipf's exponent | " + " | ".join(f"{size:,} states kept" for size in sizes) + " |",
        "| ---: | ---: |" + " ---: |" * len(sizes),
    ]
    for traffic in traffics:
        rates = " | ".join(f"{hit_rate(traffic, size):.0%}" for size in sizes)
        lines.append(f"| {traffic.users:,} | {traffic.skew:g} | {rates} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m srp4ctr_loadtest.near_cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"write {NAME} there")
    out: Path | None = parser.parse_args(argv).out
    text = page(SIZES, [Traffic(users, skew) for users in USERS for skew in SKEWS])
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / NAME).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

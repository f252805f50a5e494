"""Hit rates of the near cache: what is drawn is what the cache answers."""

import pytest

from srp4ctr_loadtest.near_cache import Traffic, hit_rate, page


def test_a_cache_that_holds_everybody_misses_only_who_has_acted() -> None:
    """Without events all reads hit once the cache is warm; with one after every request, none does."""
    quiet = Traffic(users=20, skew=0.0, act_share=0.0, requests_per_s=100.0, seconds=20.0)
    assert hit_rate(quiet, size=20) == 1.0
    assert hit_rate(Traffic(20, 0.0, 1.0, 100.0, 20.0), size=20) == 0.0
    assert hit_rate(Traffic(20, 0.0, 0.2, 100.0, 20.0), size=20) == pytest.approx(0.8, abs=0.05)


def test_a_smaller_cache_hits_as_often_as_it_holds_the_users() -> None:
    """Users who are all alike are there as often as a part of them fits; states that are too old are not."""
    alike = Traffic(users=100, skew=0.0, act_share=0.0, requests_per_s=100.0, seconds=50.0)
    assert hit_rate(alike, size=25) == pytest.approx(0.25, abs=0.03)
    # Each user is asked for every 1,000 s, a state is kept for 300.
    rare = Traffic(users=100, skew=0.0, act_share=0.0, requests_per_s=0.1, seconds=50_000.0)
    assert hit_rate(rare, size=100) == pytest.approx(0.23, abs=0.04)


def test_the_page_has_a_row_for_each_traffic() -> None:
    """And a column for each size."""
    text = page([5, 20], [Traffic(20, 1.0, 0.0, 10.0, 20.0), Traffic(20, 0.0, 0.0, 10.0, 20.0)])
    rows = [line for line in text.splitlines() if line.startswith("| 20 |")]
    assert [row.count("|") for row in rows] == [5, 5]
    assert rows[0].endswith(" 100% |")

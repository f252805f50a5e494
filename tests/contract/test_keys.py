"""Names in Redis."""

import string

from hypothesis import given
from hypothesis import strategies as st

from srp4ctr.contract.keys import Keys, partition

users = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)


def test_partitions_never_move() -> None:
    """Partitions of known users are what they have always been: CRC-32 modulo 1,024."""
    assert [partition(user) for user in ("196", "u17", "日本", "a b")] == [662, 276, 460, 211]
    assert Keys().state("m-1", "a b") == "srp4ctr:{p211}:s:m-1:a%20b"


@given(users, users)
def test_no_two_users_share_a_key(one, other) -> None:
    """Keys of different users differ, hold printable ASCII and one hash tag, whatever is in the ids."""
    keys = Keys("ns")
    first, second = keys.state("v", one), keys.state("v", other)
    assert (first == second) == (one == other)
    assert set(first) <= set(string.printable) - set(string.whitespace)
    assert first.count("{") == first.count("}") == 1

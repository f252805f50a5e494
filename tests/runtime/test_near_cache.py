"""What a process keeps of user states is dropped when it changes, whichever versions it has scored with."""

import pytest

from srp4ctr.runtime.near_cache import NearCache


@pytest.mark.parametrize("changed", [["n:u"], ["s:1:u", "n:u"], ["s:2:u", "n:u"]])
def test_a_count_belongs_to_the_states_of_all_versions(changed):
    """When a user's count changes, no version's state is believed to have all events, whatever was dropped before."""
    cache = NearCache(entries=10, keep_s=60.0)
    for key in ("s:1:u", "s:2:u"):
        cache.put(key, "n:u", cache.read(b"state", b"1 1"))
    for key in changed:
        cache.drop(key)
    assert [cache.get(key) for key in ("s:1:u", "s:2:u")] == [None, None]


def test_what_is_dropped_for_want_of_room_takes_nothing_along():
    """The version that was active before goes first, and the count is still that of the present one's state."""
    cache = NearCache(entries=2, keep_s=60.0)
    for key, beside in (("s:1:u", "n:u"), ("s:2:u", "n:u"), ("s:2:v", "n:v")):
        cache.put(key, beside, cache.read(b"state", b"1 1"))
    assert cache.get("s:1:u") is None
    assert cache.get("s:2:u") is not None
    cache.drop("n:u")
    assert cache.get("s:2:u") is None


def test_what_is_doubted_is_only_the_last_known():
    """Of one user, under all versions, until it is read again; it goes when somebody is forgotten, and what is true stays."""
    cache = NearCache(entries=10, keep_s=60.0)
    user = ("s:1:u", "s:2:u")
    for key, beside in ((user[0], "n:u"), (user[1], "n:u"), ("s:2:v", "n:v")):
        cache.put(key, beside, cache.read(b"state", b"1 1"))
    cache.doubt("n:w")
    cache.doubt("n:u")
    assert [cache.get(key) for key in user] == [None, None]
    assert [cache.last_known(key).value for key in user] == [b"state", b"state"]
    cache.put(user[1], "n:u", cache.read(b"new", b"1 2"))
    assert cache.get(user[1]).value == b"new"
    cache.drop_doubted()
    assert cache.last_known(user[0]) is None
    assert cache.get(user[1]).value == b"new"
    assert cache.get("s:2:v").value == b"state"

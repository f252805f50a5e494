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

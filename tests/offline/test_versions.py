"""`srp4ctr rollback` and `srp4ctr versions`: back by one pointer, and nothing goes that services may need."""

import pytest
import redis

from srp4ctr.cli import main as cli
from srp4ctr.contract.errors import StoreError, StoreUnavailable, VersionIncomplete
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.state_store import StateStore


@pytest.fixture
def published(store, monkeypatch, redis_server, tmp_path):
    """Publish and activate versions without a model, whose names are given; the commands then see the same Redis."""
    monkeypatch.setenv("SRP4CTR_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(tmp_path))

    def publish(*names, activate=True):
        for name in names:
            store.put_many(name, [(str(user), name.encode()) for user in range(2500)])
            store.mark_published(name, name[0] * 64, 2500)
            if activate:
                store.activate(name, name[0] * 64)

    return publish


def test_roll_back_and_forth(store, published) -> None:
    """Rolling back makes the version before the active one, and rolling back once more undoes that."""
    published("a", "b")
    back = store.roll_back()
    assert (back.version, back.fingerprint, back.previous) == ("a", "a" * 64, "b")
    assert store.active() == back
    assert store.roll_back().version == "b"


class Twice(redis.Redis):
    """Sends each script twice, as a client does whose connection ends before the answer comes."""

    def eval(self, *arguments):
        """The second answer."""
        super().eval(*arguments)
        return super().eval(*arguments)


def test_a_switch_that_is_sent_twice_is_one(store, published, redis_server) -> None:
    """Where only the answer was lost, a rollback has happened once and says so, and so has an activation, or a switch of items."""
    published("a", "b")
    with Twice.from_url(redis_server.url) as client:
        again = StateStore(client, Keys("srp4ctr"))
        assert (again.roll_back().version, store.active().version) == ("a", "a")
        assert again.activate("b", "b" * 64).previous == "a"
        again.follow_items_revision("b", None, "r1")
    assert store.items_revision("b") == "r1"


def test_a_rollback_that_redis_does_not_answer_says_what_to_look_at(published, redis_server) -> None:
    """A second rollback would undo one that has happened: whoever does not know is told to look first."""

    class Killed(redis.Redis):
        def eval(self, *arguments):
            redis_server.kill()
            return super().eval(*arguments)

    published("a", "b")
    with (
        Killed.from_url(redis_server.url) as client,
        pytest.raises(StoreUnavailable, match="look at srp4ctr versions before a second rollback"),
    ):
        StateStore(client, Keys("srp4ctr")).roll_back()


def test_nothing_to_roll_back_to(store, published, capsys) -> None:
    """Without a version before, or without its states, nothing changes, and the error says so."""
    with pytest.raises(VersionIncomplete, match="no version to roll back to"):
        store.roll_back()
    published("a")
    assert cli(["rollback"]) == 1
    assert "no version to roll back to" in capsys.readouterr().err
    published("b")
    store._client.delete("srp4ctr:published:a")
    with pytest.raises(VersionIncomplete, match="the states of a, which was active before, are gone"):
        store.roll_back()
    assert store.active().version == "b"


@pytest.mark.usefixtures("store")
def test_roll_back_needs_the_bundle(store, published, capsys) -> None:
    """The command refuses a version whose bundle is not there: services could not load it."""
    published("a", "b")
    assert cli(["rollback"]) == 1
    assert "a" in capsys.readouterr().err
    assert store.active().version == "b"


def test_versions_are_listed_and_pruned(store, published, capsys) -> None:
    """All versions are listed; pruning removes the states of those that nothing needs, and of no others."""
    published("old", "older", "before", "now")
    published("next", activate=False)
    assert cli(["versions"]) == 0
    listed = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed[:2] == [["now", "active"], ["before", "previous"]]
    assert sorted(listed[2:]) == [["next", "published"], ["old", "published"], ["older", "published"]]
    assert cli(["versions", "--prune", "--keep", "1"]) == 0
    told = capsys.readouterr().out
    assert "removed 2,500 states of old\n" in told
    assert store.versions() == ["before", "next", "now"]
    states = {
        name: sum(store.exist(name, [str(user) for user in range(2500)]))
        for name in ("old", "older", "before", "now", "next")
    }
    assert states == {"old": 0, "older": 0, "before": 2500, "now": 2500, "next": 2500}


def test_versions_in_use_are_never_dropped(store, published) -> None:
    """Neither the active version nor the one to roll back to can be removed."""
    published("a", "b")
    for name in ("a", "b"):
        with pytest.raises(StoreError, match="is not removed"):
            store.drop(name)
    assert sum(store.exist("a", ["1", "2"])) == 2


def test_dropped_version_cannot_be_activated(store, published) -> None:
    """A version whose states are removed is not published any more."""
    published("a", "b")
    published("c", activate=False)
    assert store.drop("c") == 2500
    with pytest.raises(VersionIncomplete):
        store.activate("c", "c" * 64)

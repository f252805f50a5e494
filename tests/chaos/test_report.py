"""What a run of chaos passes for: a service that survives and does not serve is no success."""

import dataclasses

import pytest

from srp4ctr_loadtest.chaos.aftermath import Aftermath
from srp4ctr_loadtest.chaos.report import Answers, Report


@pytest.fixture
def good():
    """A report of a run in which all was well."""
    return Report(
        settings={},
        kills={},
        answers=Answers(answers=100, checked=100, in_full=90),
        not_recovered=0,
        aftermath=Aftermath(),
        events={"sent": 10, "acknowledged": 10},
        wrong_outcomes={},
        forgotten=1,
        jobs={"completed": 3, "reruns": 2, "reruns_completed": 2},
        job_failures={},
        ended={},
        errors_by_type={"503 /problems/store-unavailable": 7, "ConnectError": 9},
        seconds=1.0,
    )


def test_refusals_while_something_is_dead_are_no_failure(good):
    """Nobody can answer then."""
    assert good.failures() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"answers": Answers(answers=100, checked=100, in_full=40)}, "60 answers that were not in full"),
        ({"answers": Answers(answers=100, checked=100)}, "100 answers that were not in full"),
        ({"not_recovered": 1}, "1 answers that were not whole when all was calm again"),
        ({"aftermath": Aftermath(lost=2)}, "2 afterwards lost"),
        ({"events": {"sent": 10, "acknowledged": 9}}, "1 events that were never acknowledged"),
        ({"errors_by_type": {"500 /problems/internal": 1}}, "1 answers of status 500"),
    ],
)
def test_what_should_not_be_is_told(good, changed, said):
    """Degraded answers to everything, a service that does not recover, and whatever is lost."""
    (told,) = dataclasses.replace(good, **changed).failures()
    assert told.startswith(said)

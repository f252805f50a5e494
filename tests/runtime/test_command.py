"""How a command ends: what a user can mend is one line, anything else is not hidden."""

import pytest

from srp4ctr.contract.errors import DataError
from srp4ctr.runtime.command import exit_code


def raising(error: BaseException):
    def run() -> int:
        raise error

    return run


def test_what_a_user_can_mend_is_one_line(capsys) -> None:
    assert exit_code("bench", raising(DataError("no bundle in var/; run: make demo"))) == 1
    assert capsys.readouterr() == ("", "bench: no bundle in var/; run: make demo\n")


def test_an_interrupt_is_told_from_a_failure(capsys) -> None:
    assert exit_code("bench", raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


def test_faults_of_ours_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code("bench", raising(ZeroDivisionError()))
    assert exit_code("bench", lambda: 3) == 3

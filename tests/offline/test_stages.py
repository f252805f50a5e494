"""The demonstration's memory: what is done already is left out, and nothing else."""

import json

import pytest

from srp4ctr_offline.stages import Stages


def ran(capsys) -> bool:
    """Whether the stage ran."""
    return "unchanged" not in capsys.readouterr().out


def test_a_stage_runs_again_only_for_a_reason(tmp_path, capsys) -> None:
    """A command is left out if its inputs are the same and its output is as it was left, and runs in all other cases."""
    memory, output = tmp_path / "stages.json", tmp_path / "report.json"
    command = ["data", "synthetic", "--out", str(tmp_path), "--users", "3", "--items", "50"]

    def run(inputs: str) -> bool:
        Stages(memory).run(command, inputs, output)
        return ran(capsys)

    assert run("a")
    assert not run("a")
    assert run("b")
    output.write_text(output.read_text() + " ")
    assert run("b")
    output.unlink()
    assert run("b")
    memory.unlink()
    assert run("b")
    assert Stages(memory).seconds["data"] > 0


def test_a_stage_without_output_always_runs(tmp_path, capsys) -> None:
    """What leaves no file of ours, such as states in Redis, is done each time."""
    for _ in range(2):
        Stages(tmp_path / "stages.json").run(["--version"])
        assert ran(capsys)


def test_a_failed_stage_ends_the_demonstration(tmp_path) -> None:
    """A command that fails ends everything with its exit code, and is not remembered as done."""
    memory = tmp_path / "stages.json"
    with pytest.raises(SystemExit) as ended:
        Stages(memory).run(["prepare", "no-such.toml"], "a", tmp_path / "report.json")
    assert ended.value.code == 1
    assert not memory.exists() or "prepare" not in json.loads(memory.read_bytes())

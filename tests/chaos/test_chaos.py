"""`make chaos`: it finds nothing where nothing is wrong."""

import json
import os
import shutil
import subprocess
import sys

from srp4ctr_loadtest.chaos.kills import TARGETS
from srp4ctr_loadtest.chaos.versions import DATA_SET, VERSIONS


def test_chaos(tiny, tiny_sequence, tmp_path):
    """Everything is killed once under load: all answers are right, no event is lost, what is cut off completes."""
    folder = tmp_path / "chaos"
    runs = {}
    for run in (tiny, tiny_sequence):
        version = run.bundle.manifest.version
        shutil.copytree(run.bundle.folder, folder / "bundles" / version)
        # Without what the jobs write into it.
        runs[version] = f"runs/{version}"
        own = folder / runs[version]
        own.mkdir(parents=True)
        for stage in ("prepared", "finetune"):
            (own / stage).symlink_to(run.run / stage)
    (folder / DATA_SET).symlink_to(tiny.config.tables.folder)
    (folder / VERSIONS).write_text(json.dumps(runs))
    command = [sys.executable, "-m", "srp4ctr_loadtest.chaos", "--kills", str(len(TARGETS)), "--gap", "0.5"]
    done = subprocess.run(
        command,
        env=os.environ | {"SRP4CTR_VAR_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == dict.fromkeys(TARGETS, 1)
    assert found["checked"] == found["answers"] > 0
    assert found["events_sent"] == found["events_acknowledged"] > found["events_late"] > 0
    assert found["reruns"] == found["reruns_completed"] > 0
    for name in ("wrong", "mixed", "lost", "duplicates", "behind", "wrong_states", "remembered"):
        assert found[name] == 0

"""What workers use together is told rightly while they come and go."""

import os
import re
import subprocess
import sys

from srp4ctr_service.process_metrics import WorkersCollector

SUPERVISOR = """
import os, time

for _ in range(15):
    workers = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            until = time.process_time() + 0.02
            while time.process_time() < until:
                pass
            os._exit(0)
        workers.append(pid)
    for pid in workers:
        os.waitpid(pid, 0)
"""

SCRAPES = """
import multiprocessing, os, shutil, sys
from pathlib import Path

from srp4ctr_service.telemetry import Telemetry

AT_ONCE = 4
telemetry = Telemetry()
telemetry.serve_version("v")
folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
(own,) = folder.glob("gauge_live*.db")
no_process = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
for number in range(400):
    shutil.copy(own, str(own).replace(f"_{os.getpid()}.", f"_{no_process + number}."))
forked = multiprocessing.get_context("fork")
together = forked.Barrier(AT_ONCE)

def scrape():
    together.wait()
    os.write(1, telemetry.text())

asked = [forked.Process(target=scrape) for _ in range(AT_ONCE)]
for one in asked:
    one.start()
for one in asked:
    one.join()
sys.exit(any(one.exitcode for one in asked))
"""

BESIDE_ONE_THAT_BEGINS = """
import os
from pathlib import Path

from srp4ctr_service.telemetry import Telemetry

telemetry = Telemetry()
telemetry.serve_version("v")
for kind in ("counter", "histogram", "gauge_livesum"):
    Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], f"{kind}_{os.getppid()}.db").touch()
os.write(1, telemetry.text())
"""


def measured(pid):
    """Values of the metrics by name."""
    return {
        sample.name: sample.value for found in WorkersCollector(pid).collect() for sample in found.samples
    }


def served(script, folder):
    """How many workers serve the version, by each scrape that the script prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return re.findall(r'^srp4ctr_model_info\{version="v"\} (.*)$', done.stdout, re.MULTILINE)


def test_cpu_seconds_never_fall_while_workers_end():
    """A counter that fell would be taken for a restart, and all that was ever used would count once more."""
    seen = []
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR]) as process:
        while process.poll() is None:
            seen.append(measured(process.pid))
    cpu_s = [one["process_cpu_seconds_total"] for one in seen if "process_cpu_seconds_total" in one]
    assert cpu_s == sorted(cpu_s)
    assert len(cpu_s) > len(seen) / 2
    assert cpu_s[-1] > 0.5


def test_of_a_supervisor_that_has_ended_there_is_nothing():
    """And whoever asks is not given an error."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert measured(process.pid)["process_resident_memory_bytes"] == 0
    assert measured(process.pid) == {}


def test_ended_workers_are_left_out_whoever_is_asked_at_the_same_time(tmp_path):
    """What they served, they serve no more; each scrape is answered, although another removes the same."""
    assert served(SCRAPES, tmp_path) == ["1.0"] * 4


def test_a_worker_that_begins_hides_nothing_of_the_others(tmp_path):
    """Its files may be there and empty when somebody asks, and stay so where it is killed."""
    assert served(BESIDE_ONE_THAT_BEGINS, tmp_path) == ["1.0"]

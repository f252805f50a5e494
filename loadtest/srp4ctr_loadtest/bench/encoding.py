"""CPU of a request's scores from a cached state, against encoding the user's history anew for each candidate."""

import time

from srp4ctr_loadtest.bench.costs import BareRun
from srp4ctr_loadtest.bench.findings import Finding, Part
from srp4ctr_loadtest.bench.place import Place
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.peers.baselines import BEFORE_RUNS, Histories
from srp4ctr_loadtest.peers.run import BEFORE_USERS

CANDIDATES = (1, 100, 500)
RUNS = 200


def measure(place: Place) -> Part:
    """Both alone in this process: neither HTTP nor Redis is in either."""
    workload = place.workload
    found = []
    with on_core(place.server_core):
        histories = Histories(workload, BEFORE_USERS)
        for candidates in CANDIDATES:
            question = workload.questions(candidates)[0]
            bare = BareRun(workload.subject, candidates, place.scaled(RUNS))
            asked = type(question)(BEFORE_USERS[0], question.item_ids)
            histories.scores(asked, stored=False)
            ratios = []
            for _ in range(BEFORE_RUNS):
                began = time.process_time()
                histories.scores(asked, stored=False)
                ratios.append(1000 * (time.process_time() - began) / bare.cpu_ms())
            what = f"CPU with the history encoded for each candidate over that from a cached state, {candidates} candidates"
            found.append(Finding(f"encoding.{candidates}", what, sorted(ratios)[len(ratios) // 2], "x"))
    return Part(found)

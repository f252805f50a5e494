"""What we aim at beside each peer: requests a second of one core, as a multiple of the peer's."""

from collections.abc import Mapping
from dataclasses import dataclass

from srp4ctr_loadtest.peers.results import Results

OURS, OURS_NEAR = "srp4ctr", "srp4ctr-near"

_FIRM = {100: 2.5, 500: 3.0}
_FAR = {50: 4.0, 100: 4.0, 500: 4.0}
AIMS: Mapping[str, Mapping[int, float]] = {
    # Against those who have the same weights and nothing of our bundle; with one identical graph the ratio is shown alone.
    "fastapi-plain": _FIRM,
    "triton-plain": _FIRM,
    "mlserver": _FAR,
    "bentoml": _FAR,
    "ray": _FAR,
    "litserve": _FAR,
}


@dataclass(frozen=True)
class Ratio:
    """Our requests a second over a peer's: every state read from Redis, and out of the near cache; and the aim."""

    peer: str
    candidates: int
    redis: float
    near: float | None
    cpu: float
    aim: float | None

    @property
    def met(self) -> bool | None:
        """Whether like with like, both reading Redis at each request, is what we aim at; None without an aim."""
        return None if self.aim is None else self.redis >= self.aim


def ratios(results: Results) -> list[Ratio]:
    """A ratio for each peer and number of candidates that both were measured with."""
    found = []
    for peer in results.titles:
        for candidates in results.candidates():
            ours, near = (results.closed(name, candidates) for name in (OURS, OURS_NEAR))
            theirs = results.closed(peer, candidates)
            if peer in (OURS, OURS_NEAR) or theirs is None or ours is None:
                continue
            if not theirs.rps or not theirs.cpu_ms or not ours.rps or not ours.cpu_ms:
                continue
            aim = AIMS.get(peer, {}).get(candidates)
            near_ratio = near.rps / theirs.rps if near is not None and near.rps else None
            found.append(
                Ratio(
                    peer,
                    candidates,
                    ours.rps / theirs.rps,
                    near_ratio,
                    theirs.cpu_ms / ours.cpu_ms,
                    aim,
                )
            )
    return found

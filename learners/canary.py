"""A canary: a challenger that passed its trial serves a share of the entities before it serves all.

Who is served by it follows from a hash of the entity's pseudonym and of the lineage alone, so all workers agree, also
after a restart, and the next canary meets others.

What each arm really served is compared when labels come. The arms are other entities, so they are not compared as they
are: from the loss of each served score the loss is taken that the champion of the learner has on the same example. That
takes out most of what makes one example harder than another (a control variate, as in Deng et al. 2013, "Improving the
sensitivity of online controlled experiments by utilizing pre-experiment data"). Examples of the canary's arm are then
paired with those of the other arm that came since, each used once. Two bets are made on the differences
(`learners.verdict`): that the canary's are worse by more than nothing, and that they are not worse by more than
`max_canary_harm`. The first ends it, the second completes the swap; both may be looked at after every example.

What is assumed: within a step, examples of both arms are alike but for the arm. With few entities, or one with most of
the traffic, they are not.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.admission import mixed
from learners.batch import lineage_number
from learners.rollback import GuardConfig
from learners.verdict import BOUND, Verdict, Wealth

Floats = NDArray[np.float64]


def chosen(keys: NDArray[np.int64], salt: str, share: float) -> NDArray[np.bool_]:
    """Which of the keys [n], hashes already, belong to `share` of all: the same for the same salt, anywhere."""
    with np.errstate(over="ignore"):
        salted = keys.view(np.uint64) ^ mixed(np.array([zlib.crc32(salt.encode())], np.uint64))
        part: NDArray[np.bool_] = (mixed(salted) >> np.uint64(11)).astype(np.float64) / 2.0**53 < share
    return part


def arm_code(lineage: str) -> int:
    """What a row's `arm` is where the canary of this lineage made its score; of rows that went to the champion while
    it was running, the negative of it. 0: there was none.
    """
    return lineage_number(lineage)


def _means(values: list[float], parts: int) -> Floats:
    """Means [parts] of neighbouring values, about equally many each."""
    return np.array([part.mean() for part in np.array_split(np.array(values), parts)])


class CanaryTest:
    """The served scores of one canary's arm against those of the other arm. Needs `alpha`, limits from `config`."""

    def __init__(self, config: GuardConfig, lineage: str) -> None:
        self._config, self._code = config, arm_code(lineage)
        self._harm, self._harmless = Wealth(0.0), Wealth(-config.max_canary_harm)
        self._waiting: list[list[float]] = [
            [],
            [],
        ]  # excess losses without a partner: of the canary, of the others
        self.counts, self._losses = (
            np.zeros(2, np.int64),
            np.zeros(2),
        )  # served examples and losses, in this order

    def update(self, arm: NDArray[np.int32], losses: Floats, champion: Floats) -> None:
        """Arm [n] of examples, the loss [n] of what was served, and the loss [n] that the champion would have had."""
        excess = np.clip(losses - champion, -BOUND, BOUND)
        for side, rows in enumerate((arm == self._code, arm == -self._code)):
            self._waiting[side] += excess[rows].tolist()
            self.counts[side] += rows.sum()
            self._losses[side] += losses[rows].sum()
        own, other = self._waiting
        if pairs := min(len(own), len(other)):
            worse = _means(own, pairs) - _means(other, pairs)
            self._harm.update(worse)
            self._harmless.update(-worse)
            self._waiting = [[], []]

    @property
    def verdict(self) -> Verdict:
        """Promote: the swap is completed; reject: it does harm; keep: neither was shown in time; undecided: go on."""
        needed = -math.log(self._config.alpha)
        if self._harm.log >= needed:
            return "reject"
        if self._harmless.log >= needed:
            return "promote"
        return "keep" if self.counts[0] >= self._config.canary_events else "undecided"

    @property
    def told(self) -> str:
        """Both arms in words."""
        own, other = self._losses / np.maximum(self.counts, 1)
        n, others = self.counts.tolist()
        return f"loss {own:.4f} of {n:,} scores that it served against {other:.4f} of {others:,} of the other arm"

    def evidence(self) -> dict[str, Any]:
        """What is known, ready for JSON."""
        own, other = (self._losses / np.maximum(self.counts, 1)).tolist()
        n, others = self.counts.tolist()
        return {
            "share": self._config.canary,
            "n": n,
            "other_n": others,
            "loss": own if n else None,
            "other_loss": other if others else None,
            "e_value_harm": float(np.exp(min(self._harm.log, 709.0))),
            "e_value_no_harm": float(np.exp(min(self._harmless.log, 709.0))),
        }

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on exactly from here; ready for JSON."""
        bets = [self._harm.state(), self._harmless.state()]
        sums = [self.counts.tolist(), self._losses.tolist()]
        return {"bets": bets, "sums": sums, "waiting": [list(each) for each in self._waiting]}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`, for a test with the same settings."""
        for bet, saved in zip((self._harm, self._harmless), state["bets"], strict=True):
            bet.load(saved)
        self.counts, self._losses = np.array(state["sums"][0], np.int64), np.array(state["sums"][1])
        self._waiting = [list(each) for each in state["waiting"]]

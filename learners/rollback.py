"""The guard after a swap: the replaced champion goes on scoring beside the new one, and is put back if it was better.

Two sources of evidence. Labelled examples (`Guard`): losses of both on the same examples, and the new champion's
calibration. What the workers say before any label comes (`Served`): scores that are no number, scores that are
distributed quite otherwise than before the swap, and scoring that takes too long.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from learners.segments import NO_SEGMENTS, Segmented, Segments
from learners.target import BINARY, BINS, Target
from learners.verdict import Wealth

if TYPE_CHECKING:
    from learners.trainer import Trainer

Floats = NDArray[np.float64]

BETS = 4  # on the loss, on a bias upwards and downwards, and on segments: they share alpha
GOLDEN_ROWS = 64  # that scoring is timed with
ENOUGH = 1_000  # scores, before a histogram says anything
ENOUGH_BATCHES = 20  # before their times do
_SHARE = 0.1  # bins are merged until each held so much of the scores before the swap


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """The `[guard]` section of a task file. Raises ValueError, naming the field, for a value that cannot work."""

    events: int = 5_000  # labelled examples that the guard looks at after a swap; 0: no guard
    alpha: float = (
        0.01  # at most this share of swaps to a model that is no worse is taken back for its losses
    )
    min_effect: float = 0.0005  # nats by which it must be worse than the one that it replaced
    max_bias: float = (
        0.1  # how far the mean score may be from the mean label, if the replaced one's is nearer
    )
    max_shift: float = 5.0  # PSI of the scores, before to after the swap; of a constant score it is 6 or 7
    max_scoring_ms: float = 100.0  # for 64 rows, before a swap and after it
    canary: float = 0.0  # share of the entities that a new champion serves before it serves all; 0: none
    canary_events: int = 2_000  # labelled examples of its own that it may take to show that it does no harm
    max_canary_harm: float = 0.02  # nats by which its served scores may be worse than those of the other arm

    def __post_init__(self) -> None:
        if self.events < 0:
            raise ValueError("events must be at least 0")
        if not 0.0 < self.alpha < 1.0:
            raise ValueError("alpha must be above 0 and below 1")
        if not 0.0 <= self.min_effect < 1.0:
            raise ValueError("min_effect must be at least 0 and below 1 nat")
        if not 0.0 < self.max_bias < 1.0:
            raise ValueError("max_bias must be above 0 and below 1")
        if not 0.0 <= self.canary <= 0.5:
            raise ValueError("canary must be at least 0 and at most 0.5")
        if self.canary_events < 1:
            raise ValueError("canary_events must be at least 1")
        if not 0.0 < self.max_canary_harm < 1.0:
            raise ValueError("max_canary_harm must be above 0 and below 1 nat")
        for name in ("max_shift", "max_scoring_ms"):
            if getattr(self, name) <= 0.0:
                raise ValueError(f"{name} must be above 0")


USUAL = GuardConfig()


class Guard:
    """Watches the champion of `lineage`, which replaced `former`. Both go on learning.

    `episode` is the alert that the swap followed from, "" if none.

    Each bet is anytime-valid (see `learners.verdict`): a champion that is no worse and not biased is rolled back
    with probability at most alpha, however often one looks. There is no bet on the bias of a value: it has no bounds
    that such a bet would need, and is part of the error that the other bet is on.
    """

    def __init__(
        self,
        config: GuardConfig,
        lineage: str,
        former: "Trainer",
        segments: Segments | None = None,
        episode: str = "",
    ) -> None:
        self._config, self.lineage, self.former, self.episode = config, lineage, former, episode
        self._segments = segments or Segments((), 0.0, 0.5)
        self._target = former.schema.target
        self._worse = Wealth(config.min_effect)
        self._bias = (Wealth(config.max_bias, 1.0), Wealth(config.max_bias, 1.0))  # upwards, downwards
        self.count = 0
        self._sums = np.zeros(5)  # losses of champion and former, scores of both, labels

    def update(
        self,
        label: NDArray[Any],
        scores: Mapping[str, NDArray[Any]],
        losses: Mapping[str, Floats],
        about: Segmented = NO_SEGMENTS,
    ) -> None:
        """Labels [n], by lineage scores [n] and losses [n], and segments, of examples that neither had learned from."""
        own, its = self.lineage, self.former.lineage
        self._segments.update(about, losses[its], losses[own])
        self._worse.update(losses[own] - losses[its])
        own_score, its_score = self._target.one(scores[own]), self._target.one(scores[its])
        error = own_score.astype(np.float64) - label
        if self._target.kind == "binary":
            for bet, sign in zip(self._bias, (1.0, -1.0), strict=True):
                bet.update(sign * error)
        self.count += len(label)
        told = (losses[own], losses[its], own_score, its_score, label)
        self._sums += [column.sum(dtype=np.float64) for column in told]

    @property
    def passed(self) -> bool:
        """Whether the window is over."""
        return self.count >= self._config.events

    @property
    def reason(self) -> str | None:
        """Why the champion must go, in words; None if nothing speaks against it."""
        needed = BETS / self._config.alpha
        evidence = self.evidence()
        if self._worse.log >= np.log(needed):
            name, words = self._target.loss_name, self._target.loss_words
            losses = f"{words} {evidence[f'champion_{name}']:.4f} against {evidence[f'former_{name}']:.4f}"
            return f"{losses} of {self.former.lineage} on {self.count:,} examples since the swap"
        own, its = (abs(evidence[f"{arm}_bias"] or 0.0) for arm in ("champion", "former"))
        if max(bet.log for bet in self._bias) >= np.log(needed) and its < own:
            bias = f"the mean score is {evidence['champion_bias']:+.3f} off the mean label"
            return f"{bias} on {self.count:,} examples since the swap, {its:.3f} of {self.former.lineage}"
        harmed = self._segments.harmed
        return f"it does harm {harmed} since the swap" if harmed else None

    @property
    def held(self) -> str:
        """That nothing speaks against it, in words."""
        return f"{self.lineage} held for {self.count:,} examples after it had replaced {self.former.lineage}"

    def evidence(self) -> dict[str, Any]:
        """What the guard knows, ready for JSON."""
        loss, former_loss, score, former_score, label = self._sums / max(self.count, 1)
        return {
            "guarded": self.lineage,
            "n": self.count,
            "alpha": self._config.alpha / BETS,
            "e_value_worse": float(np.exp(min(self._worse.log, 709.0))),
            f"champion_{self._target.loss_name}": float(loss),
            f"former_{self._target.loss_name}": float(former_loss),
            "champion_bias": None if self._target.classes else float(score - label),
            "former_bias": None if self._target.classes else float(former_score - label),
            "segments": self._segments.evidence(),
        }

    def state(self) -> dict[str, Any]:
        """All but the former champion's model, ready for JSON."""
        bets = [bet.state() for bet in (self._worse, *self._bias)]
        return {
            "lineage": self.lineage,
            "former": self.former.lineage,
            "episode": self.episode,
            "count": self.count,
            "sums": self._sums.tolist(),
            "bets": bets,
            "segments": self._segments.state(),
        }

    @classmethod
    def restored(
        cls, config: GuardConfig, state: Mapping[str, Any], former: "Trainer", segments: Segments
    ) -> Self:
        """The inverse of `state`, with the former champion, and segments that have only their settings."""
        segments.load(state["segments"])
        guard = cls(config, state["lineage"], former, segments, state["episode"])
        guard.count, guard._sums = int(state["count"]), np.array(state["sums"], np.float64)
        for bet, saved in zip((guard._worse, *guard._bias), state["bets"], strict=True):
            bet.load(saved)
        return guard


def stability(before: NDArray[np.int64], after: NDArray[np.int64]) -> float:
    """Population stability index between two histograms [40], over bins merged to a tenth of `before` or more."""
    groups = np.minimum(np.floor((np.cumsum(before) - before) / (_SHARE * before.sum())), 1.0 / _SHARE - 1)
    shares = []
    for counts in (before, after):
        merged = np.bincount(groups.astype(np.int64), counts, int(1.0 / _SHARE)) + 0.5
        shares.append(merged / merged.sum())
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


@dataclass(frozen=True, slots=True)
class Scored:
    """What one worker scored in a while: rows, those whose score is no number, batches, those that took too long.

    `histogram` as of `Target`.
    """

    rows: int = 0
    broken: int = 0
    batches: int = 0
    slow: int = 0
    histogram: tuple[int, ...] = ()

    def plus(
        self, scores: NDArray[Any], took_ms: float, budget_ms: float, target: Target = BINARY
    ) -> "Scored":
        """With one more batch of scores [n]; `budget_ms` is for 64 rows, and for fewer."""
        if not len(scores):
            return self
        counts = target.histogram(scores) + np.array(self.histogram or [0] * BINS, np.int64)
        return Scored(
            self.rows + len(scores),
            self.broken + int(len(scores) - target.known(scores).sum()),
            self.batches + 1,
            self.slow + int(took_ms > budget_ms * max(1.0, len(scores) / GOLDEN_ROWS)),
            tuple(counts.tolist()),
        )


class Served:
    """What the workers served before the newest swap and since, added up; pure."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._lineage = ""
        self._before = np.zeros(BINS, np.int64)
        self._clear()

    def beside(self, lineage: str) -> "Served":
        """What the workers serve by a canary, against what the champion serves now."""
        made = Served(self._config)
        made._lineage, made._before = lineage, self._since.copy()
        return made

    def _clear(self) -> None:
        self._since = np.zeros(BINS, np.int64)
        self._scored = self._broken = self._batches = self._slow = 0

    def swapped(self, lineage: str) -> None:
        """`lineage` is live from now on."""
        if lineage != self._lineage:
            if self._since.sum() >= ENOUGH:
                self._before = self._since
            self._lineage = lineage
            self._clear()

    def hear(self, lineage: str, part: "Scored") -> None:
        """Add what one worker scored with `lineage` since its last report."""
        if lineage != self._lineage:
            return
        if self._since.sum() > 100 * ENOUGH:  # the newest count more
            self._since //= 2
        self._since += np.array(part.histogram or [0] * BINS, np.int64)
        self._scored += part.rows
        self._broken += part.broken
        self._batches += part.batches
        self._slow += part.slow

    @property
    def reason(self) -> str | None:
        """Why the lineage must go, in words; None if nothing speaks against it."""
        config, shift = self._config, self.shift
        if self._broken:
            return f"{self._broken:,} of {self._scored:,} scores are no number"
        if self._batches >= ENOUGH_BATCHES and 2 * self._slow > self._batches:
            budget = f"{config.max_scoring_ms:g} ms for {GOLDEN_ROWS} rows"
            return f"{self._slow:,} of {self._batches:,} batches took longer than {budget}"
        if shift is not None and shift > config.max_shift:
            return (
                f"the scores are not those of before the swap: PSI {shift:.2f}, {config.max_shift:g} allowed"
            )
        return None

    @property
    def shift(self) -> float | None:
        """PSI of the scores since the swap against those before; None before there are enough of both."""
        if min(self._before.sum(), self._since.sum()) < ENOUGH:
            return None
        return stability(self._before, self._since)

    def evidence(self) -> dict[str, Any]:
        """What the workers said, ready for JSON."""
        return {
            "guarded": self._lineage,
            "scored": self._scored,
            "broken": self._broken,
            "batches": self._batches,
            "slow": self._slow,
            "score_psi": self.shift,
        }

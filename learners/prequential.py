"""How good an arm is now: exact metrics over its last labelled examples, each scored before it was learned
from.

A late label that corrects an example changes the label of that example in the windows that it is still in. It
adds none: what counts is the score of then against what is known now, once for each event.
"""

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.metrics import log_loss, metrics
from learners.target import BINARY, METRICS, Target

__all__ = ["MetricRow", "Prequential", "id_hashes", "log_loss", "metric_row", "metrics"]

SEGMENT_VALUES, SEGMENT_EXAMPLES = (
    8,
    50,
)  # values of a segment that have rows, and examples that such a row needs

_ABOUT = "/about"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """Metrics of one arm over its last `window` labelled examples; what is undefined is NaN (see
    `learners.metrics`), and so is what is not of this kind of task.

    `arm` is served (what was really served), champion (whichever lineage was the champion when it scored, so
    that all arms are compared on the same examples), continuous (the first lineage, which goes on learning
    after it was replaced), frozen or challenger. `lineage` is empty for served. `segment` names a category
    column and `segment_value` the pseudonym of one of its values where the row is over those examples only; "" and
    0: over all.
    """

    arm: str
    lineage: str
    event_ms: int
    created_ms: int
    n: int
    positives: int
    auc: float
    average_precision: float
    log_loss: float
    ece: float
    rmse: float = math.nan
    mae: float = math.nan
    r2: float = math.nan
    accuracy: float = math.nan
    macro_f1: float = math.nan
    segment: str = ""
    segment_value: int = 0


def metric_row(
    arm: str,
    lineage: str,
    values: Mapping[str, float],
    event_ms: int,
    created_ms: int,
    segment: tuple[str, int] = ("", 0),
) -> MetricRow:
    """A row of the values of `Target.measure`, with whose they are and when they were taken."""
    rest: dict[str, Any] = dict.fromkeys(METRICS["binary"], math.nan) | dict(values)
    rest |= {name: int(values[name]) for name in ("n", "positives")}
    name, value = segment
    return MetricRow(arm, lineage, event_ms, created_ms, **rest, segment=name, segment_value=value)


def id_hashes(event_ids: Sequence[str]) -> NDArray[np.int64]:
    """What a window knows an example by, int64 [n]: two of 5,000 ids share one with chance 3 in 1,000."""
    return np.array([zlib.crc32(event_id.encode()) for event_id in event_ids], np.int64)


class Ring:
    """The last `size` labels and scores, and what is known about each, oldest first when read."""

    def __init__(self, size: int, width: int, target: Target = BINARY) -> None:
        self._label = np.zeros(size, np.float32)
        self._score = target.unknown(size)
        self._about = np.zeros((size, width), np.int64)
        self._seen = 0

    def add(
        self, label: NDArray[Any], score: NDArray[np.floating[Any]], about: NDArray[np.int64] | None
    ) -> None:
        """Append [n] of each (`about` int64 [n, width]; None: zeros); the oldest go."""
        size = len(self._label)
        skipped = max(len(label) - size, 0)
        at = np.arange(self._seen + skipped, self._seen + len(label)) % size
        self._label[at], self._score[at] = label[skipped:], score[skipped:]
        self._about[at] = 0 if about is None else about[skipped:]
        self._seen += len(label)

    def last(
        self, count: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Labels, scores and `about` of the last `count` (all that is kept by default), oldest first."""
        size = len(self._label)
        held = min(self._seen, size) if count is None else min(self._seen, size, count)
        at = np.arange(self._seen - held, self._seen) % size
        return self._label[at], self._score[at], self._about[at]

    def correct(self, ids: NDArray[np.int64], label: NDArray[np.float32]) -> None:
        """Change the labels of examples by the first column of `about`; those that are gone are passed over."""
        held = min(self._seen, len(self._label))
        for event_id, value in zip(ids.tolist(), label.tolist(), strict=True):
            self._label[:held][self._about[:held, 0] == event_id] = value


class Prequential:
    """Rolling metrics of several arms, each over its own last `window` labelled examples.

    Exact, not sketched: a row costs one sort of the window (about a millisecond for 5,000 examples), so it is
    asked for every few hundred examples, not for each. What is known about an example, `about` int64
    [n, 1 + segments], is the hash of its id (`id_hashes`) and its values of the segments' columns.
    """

    def __init__(self, window: int, segments: Sequence[str] = (), target: Target = BINARY) -> None:
        if window < 1:
            raise ValueError("the window must hold at least 1 example")
        self._window, self._segments, self._target = window, tuple(segments), target
        self._rings: dict[str, Ring] = {}

    def _ring(self, arm: str) -> Ring:
        return self._rings.setdefault(arm, Ring(self._window, 1 + len(self._segments), self._target))

    def update(
        self,
        arm: str,
        label: NDArray[Any],
        score: NDArray[np.floating[Any]],
        about: NDArray[np.int64] | None = None,
    ) -> None:
        """Labels [n] and the scores [n] that the arm gave before it learned from them."""
        self._ring(arm).add(label, score, about)

    def correct(self, event_ids: Sequence[str], label: NDArray[np.float32]) -> None:
        """Examples turned out to have other labels [n] than they were added with: in every arm's window."""
        ids = id_hashes(event_ids)
        for ring in self._rings.values():
            ring.correct(ids, label)

    def row(self, arm: str, last: int | None = None) -> dict[str, float]:
        """Metrics (see `Target.measure`) over the arm's window, or its last few; n is 0 for an unknown arm."""
        if arm not in self._rings:
            return self._target.measure(np.zeros(0), self._target.unknown(0))
        label, score, _ = self._rings[arm].last(last)
        return self._target.measure(label, score)

    def values(self, arm: str) -> list[tuple[str, int]]:
        """The most frequent values of each segment in the arm's window, (segment, value): `SEGMENT_VALUES` at most."""
        if arm not in self._rings:
            return []
        about, found = self._rings[arm].last()[2], []
        for place, segment in enumerate(self._segments, 1):
            value, count = np.unique(about[:, place], return_counts=True)
            often = np.argsort(-count, kind="stable")[:SEGMENT_VALUES]
            found += [(segment, int(value[i])) for i in often if count[i] >= SEGMENT_EXAMPLES]
        return found

    def large(self, arm: str, share: float) -> list[tuple[int, int]]:
        """Segment (its place) and value of all that hold at least `share` of the arm's window, and enough examples."""
        found: list[tuple[int, int]] = []
        for place in range(len(self._segments) if arm in self._rings else 0):
            value, count = np.unique(self._rings[arm].last()[2][:, 1 + place], return_counts=True)
            enough = count >= max(share * count.sum(), SEGMENT_EXAMPLES)
            found += [(place, each) for each in value[enough].tolist()]
        return found

    def segment_row(self, arm: str, segment: str, value: int) -> dict[str, float]:
        """Metrics over the examples in the arm's window that have a value of a segment."""
        label, score, about = self._ring(arm).last()
        own = about[:, 1 + self._segments.index(segment)] == value
        return self._target.measure(label[own], score[own])

    def copy(self, arm: str, to: str) -> None:
        """Give a new arm the past of another, if it has one: a clone starts with its original's record."""
        if arm in self._rings:
            self.update(to, *self._rings[arm].last())

    def keep(self, arms: Collection[str]) -> None:
        """Forget all arms but these."""
        self._rings = {arm: ring for arm, ring in self._rings.items() if arm in arms}

    def state(self) -> dict[str, NDArray[Any]]:
        """All arms, as arrays, oldest first: "<arm>" float32 [2, n] or [1 + K, n], labels and scores; "<arm>/about"."""
        arrays: dict[str, NDArray[Any]] = {}
        for arm, ring in self._rings.items():
            label, score, about = ring.last()
            arrays |= {
                arm: np.vstack((label[None], (score if score.ndim == 2 else score[:, None]).T)),
                f"{arm}{_ABOUT}": about,
            }
        return arrays

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`. With other segments than it was saved with, their columns begin anew."""
        self._rings = {}
        for arm in [name for name in state if not name.endswith(_ABOUT)]:
            about = state[f"{arm}{_ABOUT}"]
            if about.shape[1] != 1 + len(self._segments):
                about = np.pad(about[:, :1], ((0, 0), (0, len(self._segments))))
            label, scores = state[arm][0], state[arm][1:].T
            self.update(arm, label, scores if self._target.classes else scores[:, 0], about)

"""River's detectors on the losses and errors of a model, and what counts as finding a drift, for `drift.py`."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_LOSS = 6.0

Alarms = list[int]  # row after which each alarm was raised


@dataclass(frozen=True)
class Found:
    """What the alarms of one run are worth."""

    hits: int
    false: int
    missed: int
    delays: tuple[int, ...]

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; where nothing changes, 1 without an alarm and 0 with one."""
        total = 2 * self.hits + self.false + self.missed
        return 2 * self.hits / total if total else 1.0


def score(alarms: Iterable[int], changes: Sequence[tuple[int, int]], window: int) -> Found:
    """Match alarms to changes: see `drift.py`."""
    begins = [begin for begin, _ in changes]
    ends = [*begins[1:], math.inf]
    spans = [(begin, min(stop + window, ends[i])) for i, (begin, stop) in enumerate(changes)]
    delays = dict[int, int]()
    false = 0
    for alarm in alarms:
        change = next((i for i, (begin, end) in enumerate(spans) if begin < alarm <= end), None)
        if change is None or change in delays:
            false += 1
        else:
            delays[change] = alarm - spans[change][0]
    return Found(len(delays), false, len(changes) - len(delays), tuple(delays.values()))


def spaced(alarms: Alarms, cooldown: int) -> Alarms:
    """The alarms without those that come within `cooldown` rows of one that is kept."""
    kept: Alarms = []
    for alarm in alarms:
        if not kept or alarm - kept[-1] >= cooldown:
            kept.append(alarm)
    return kept


def always(count: int, every: int) -> Alarms:
    """An alarm every so many rows, whatever happens."""
    return list(range(every, count + 1, every))


@cache
def _ks_p_values(size: int) -> list[float]:
    """The p-value of a two-sample Kolmogorov-Smirnov distance of k / size between two samples of `size`."""
    from scipy.stats import ks_2samp

    first = np.arange(size, dtype=float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)  # as River does
        return [float(ks_2samp(first, first + k - 0.5 if k else first).pvalue) for k in range(size + 1)]


def kswin(seed: int, alpha: float = 0.005) -> Any:
    """River's KSWIN with its p-values looked up: the same alarms in a twelfth of the time (a test compares them)."""
    from river.drift import KSWIN

    class Quick(KSWIN):
        """Only `update` differs."""

        def update(self, x: float) -> None:
            if self.drift_detected:
                self._reset()  # type: ignore[no-untyped-call]
            self.window.append(x)
            self._drift_detected = False
            if len(self.window) < self.window_size:
                return
            held, size = list(self.window), self.stat_size
            drawn = [held[r] for r in self._rng.sample(range(self.window_size - size), size)]
            recent = held[-size:]
            gap = _distance(drawn, recent)
            if p_values[gap] <= self.alpha and gap / size > 0.1:
                self._drift_detected = True
                self.window.clear()
                self.window.extend(recent)

    made = Quick(alpha=alpha, seed=seed)
    p_values = _ks_p_values(made.stat_size)
    return made


def _distance(first: list[float], second: list[float]) -> int:
    """Largest difference of how many values of two equally long lists are at most x."""
    both = np.array(first + second)
    order = np.argsort(both, kind="stable")
    steps = np.cumsum(np.where(order < len(first), 1, -1))
    last = np.append(
        both[order][1:] != both[order][:-1], True
    )  # of a group of equal values only the end counts
    return int(np.abs(steps[last]).max())


BUDGETS: dict[str, tuple[float, ...]] = {
    # Settings from the default to ever fewer alarms; the first one is the default.
    "ADWIN": (0.002, 1e-4, 1e-6, 1e-9),
    "PageHinkley": (50.0, 25.0, 100.0, 200.0),
    "DDM": (3.0, 4.0, 5.0, 6.0),
    "EDDM": (0.9, 0.8, 0.7, 0.6),
    "KSWIN": (0.005, 1e-5),
}
ON_ERRORS = {"DDM", "EDDM"}  # these two read only right or wrong


def peer(name: str, setting: float, seed: int) -> Any:
    """A detector of River with one setting."""
    from river import drift
    from river.drift import binary

    match name:
        case "ADWIN":
            return drift.ADWIN(delta=setting)
        case "PageHinkley":
            return drift.PageHinkley(threshold=setting)
        case "DDM":
            return binary.DDM(drift_threshold=setting)
        case "EDDM":
            return binary.EDDM(beta=setting, alpha=min(0.95, setting + 0.05))
        case _:
            return kswin(seed, setting)


def alarms_of(detector: Any, values: NDArray[Any]) -> Alarms:
    """Rows after which River's detector says that there is a drift."""
    found = []
    for row, value in enumerate(values.tolist(), 1):
        detector.update(value)
        if detector.drift_detected:
            found.append(row)
    return found


def scaled(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses [n] in [0, 1], as ADWIN wants its values."""
    return np.clip(losses, 0.0, LARGEST_LOSS) / LARGEST_LOSS


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval by the normal approximation."""
    mean = float(np.mean(values))
    return mean, 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0

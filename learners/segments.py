"""Segments: is a model that wins overall worse for a large part of the traffic?

For each value of a segment that holds a share of the traffic, two gamblers (`learners.verdict.Wealth`) look at the
paired loss differences of the examples that have it. One bets that the challenger is worse there by more than `limit`
nats, the other that it is not.

- *Harm* ends a trial. The k-th value that is watched needs k (k + 1) / alpha: the chances of error add up to alpha, so
  a challenger that harms nobody is stopped with probability at most alpha, however many values there come to be.
- *No harm* must be shown for every value that is large now before a challenger is promoted. Each needs 1 / alpha: a
  challenger that harms some large segment passes only where the bet on that one is wrong, so no correction is needed
  (the intersection-union test, Berger 1982, "Multiparameter hypothesis testing and acceptance sampling").

Both are anytime-valid. Which values are watched follows from earlier examples only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from learners.verdict import Wealth

Key = tuple[int, int]
"""Which of the task's segments, and the pseudonym of one of its values."""


@dataclass(frozen=True)
class Segmented:
    """The segments of a step: values int64 [n, S] of its examples, and those that hold enough of the traffic now."""

    values: NDArray[np.int64]
    large: tuple[Key, ...]


NO_SEGMENTS = Segmented(np.zeros((0, 0), np.int64), ())


class _Watched:
    """The two bets on one value, and the losses there."""

    def __init__(self, limit: float) -> None:
        self.harm, self.harmless = Wealth(limit), Wealth(-limit)
        self.count, self.losses = 0, np.zeros(2)  # of the other model, and of the one that is judged

    def update(self, other: NDArray[np.float64], own: NDArray[np.float64]) -> None:
        self.harm.update(own - other)
        self.harmless.update(other - own)
        self.count += len(own)
        self.losses += [other.sum(), own.sum()]

    def state(self) -> list[Any]:
        return [self.count, self.losses.tolist(), self.harm.state(), self.harmless.state()]

    def load(self, state: Sequence[Any]) -> Self:
        self.count, self.losses = int(state[0]), np.array(state[1], np.float64)
        self.harm.load(state[2])
        self.harmless.load(state[3])
        return self


class Segments:
    """The bets about one model against another, over the segments `names`. `limit` is in nats an example."""

    def __init__(self, names: Sequence[str], limit: float, alpha: float) -> None:
        self._names, self._limit, self._alpha = tuple(names), limit, alpha
        self._watched: dict[Key, _Watched] = {}  # in the order in which they became large
        self._large: tuple[Key, ...] = ()

    def update(self, about: Segmented, other: NDArray[np.float64], own: NDArray[np.float64]) -> None:
        """Log losses [n] of the other model and of the one that is judged, on a step that neither had learned."""
        for (place, value), watched in self._watched.items():
            rows = about.values[:, place] == value
            if rows.any():
                watched.update(other[rows], own[rows])
        self._large = about.large
        for (
            key
        ) in about.large:  # from the next step on: what a bet is about is known before its first example
            if key not in self._watched:
                self._watched[key] = _Watched(self._limit)

    @property
    def harmed(self) -> str | None:
        """The first value for which the model is worse than it may be, in words; None if there is none."""
        for k, (key, watched) in enumerate(self._watched.items(), 1):
            if watched.harm.log >= math.log(k * (k + 1) / self._alpha):
                return self._told(key)
        return None

    @property
    def unproven(self) -> str | None:
        """A large value for which it is not shown that the model does no harm, in words; None if there is none."""
        for key in self._large:
            if self._watched[key].harmless.log < -math.log(self._alpha):
                return self._told(key)
        return None

    def _told(self, key: Key) -> str:
        watched = self._watched[key]
        other, own = watched.losses / max(watched.count, 1)
        where = f"{self._names[key[0]]} is {key[1]}"
        return f"where {where}, loss {own:.4f} against {other:.4f} on {watched.count:,} examples"

    def evidence(self) -> list[dict[str, Any]]:
        """What is known of each value that was ever large, ready for JSON."""
        return [
            {
                "segment": self._names[place],
                "segment_value": value,
                "n": watched.count,
                "mean_difference": float(np.subtract(*watched.losses)) / watched.count
                if watched.count
                else None,
                "e_value_harm": _shown(watched.harm),
                "e_value_no_harm": _shown(watched.harmless),
            }
            for (place, value), watched in self._watched.items()
        ]

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on exactly from here; ready for JSON. Values go by the names of their segments."""
        known = [[self._names[place], value, each.state()] for (place, value), each in self._watched.items()]
        return {"watched": known, "large": [[self._names[place], value] for place, value in self._large]}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; segments that are not watched any more are left out."""
        places = {name: place for place, name in enumerate(self._names)}
        self._watched = {
            (places[name], value): _Watched(self._limit).load(saved)
            for name, value, saved in state["watched"]
            if name in places
        }
        self._large = tuple((places[name], value) for name, value in state["large"] if name in places)


def _shown(wealth: Wealth) -> float:
    return float(np.exp(min(wealth.log, 709.0)))

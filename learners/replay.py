"""Replay memory: rows that were learned, to be learned again among new ones.

A few hundred positives teach more when they are seen more than once, in another company each time, and what was learned
lately is not forgotten over the next batch (Rolnick et al. 2019). Which rows are kept is a choice:

  newest       the newest ones
  since_drift  the newest ones, and after a drift only those since its onset: what was true before is not rehearsed
  reservoir    as many of all that were ever learned, each with the same chance (Vitter 1985, algorithm R)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.batch import Batch, Schema


class Replay:
    """At most `size` rows. What is drawn is a function of the seed, the rows and how often was drawn before."""

    def __init__(self, schema: Schema, size: int, seed: int, keep: str = "newest") -> None:
        self._size, self._seed, self._keep = size, seed, keep
        self._when = np.zeros(size, np.int64)
        self._numbers = np.zeros((size, len(schema.numbers)), np.float32)
        self._categories = np.zeros((size, schema.ids), np.int64)
        self._label, self._weight = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self._added = self._draws = 0

    def __len__(self) -> int:
        return min(self._added, self._size)

    def add(self, batch: Batch) -> None:
        """Keep a batch, without rows whose label is not finite; where there is no room, older rows or these go."""
        rows = np.flatnonzero(np.isfinite(batch.label))
        numbers = self._added + np.arange(len(rows))  # of the rows, counted from the first
        self._added += len(rows)
        if self._keep == "reservoir":
            random = np.random.default_rng((self._seed, self._added, len(rows)))
            at = np.where(numbers < self._size, numbers, random.integers(0, numbers + 1))
            rows, at = rows[at < self._size], at[at < self._size]
        else:
            at = numbers % self._size
        last = dict(
            zip(at.tolist(), rows.tolist(), strict=True)
        )  # of two rows for one place the later one stays
        at, rows = np.array(list(last), np.int64), np.array(list(last.values()), np.int64)
        self._numbers[at], self._categories[at] = batch.numbers[rows], batch.categories[rows]
        self._label[at], self._weight[at] = batch.label[rows], batch.weight[rows]
        self._when[at] = batch.event_ms[rows]

    def drifted(self, since_ms: int) -> None:
        """With "since_drift", forget what happened before `since_ms`."""
        if self._keep != "since_drift":
            return
        order = (self._added - len(self) + np.arange(len(self))) % self._size  # the oldest row first
        left = order[self._when[order] >= since_ms]
        self._added = len(left)
        for column in (self._numbers, self._categories, self._label, self._weight, self._when):
            column[: len(left)] = column[left]

    def draw(self, n: int) -> Batch:
        """`n` rows, each any of those kept; none without any."""
        random, self._draws = np.random.default_rng((self._seed, self._draws)), self._draws + 1
        at = random.integers(0, len(self), n) if len(self) else np.zeros(0, np.int64)
        times, served = np.zeros(len(at), np.int64), np.full(len(at), np.nan, np.float32)
        return Batch(
            [""] * len(at), times, times, self._numbers[at], self._categories[at], served,
            self._label[at], self._weight[at],
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Everything, by names that begin with "replay."."""
        kept: dict[str, NDArray[Any]] = {
            "numbers": self._numbers, "categories": self._categories, "label": self._label, "weight": self._weight,
            "when": self._when,
        }  # fmt: skip
        tensors = {
            f"replay.{name}": torch.from_numpy(array[: len(self)].copy()) for name, array in kept.items()
        }
        return tensors | {"replay.counts": torch.tensor([self._added, self._draws])}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, for a memory of the same size. KeyError if one is not there."""
        self._added, self._draws = tensors["replay.counts"].tolist()
        self._numbers[: len(self)] = tensors["replay.numbers"].numpy()
        self._categories[: len(self)] = tensors["replay.categories"].numpy()
        self._label[: len(self)] = tensors["replay.label"].numpy()
        self._weight[: len(self)] = tensors["replay.weight"].numpy()
        self._when[: len(self)] = tensors["replay.when"].numpy()

"""The newest labelled examples, kept so that a challenger can catch up on them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import BATCH_ARRAYS, Batch
from learners.packing import Arrays
from learners.trainer import Trainer

BUFFER = 20_000
"""The newest labelled examples that an arena keeps, for challengers to catch up on."""


class Buffer:
    """At least the newest `size` examples once that many were added, in the batches they came in.

    Whole batches leave, oldest first. Event ids are not kept: no model learns from them.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._batches: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        """The batches, oldest first; their ids are empty."""
        return iter(self._batches)

    def add(self, batch: Batch) -> None:
        """Append a batch, if there is anything in it; batches that the newest `size` examples do not reach go."""
        if not len(batch):
            return
        self._batches.append(replace(batch, event_ids=[""] * len(batch)))
        while sum(map(len, self._batches[1:])) >= self._size:
            del self._batches[0]

    def teach(self, trainer: Trainer, since_ms: int) -> Trainer:
        """The trainer after one pass over what came since the onset of the drift, `since_ms`.

        Older examples would teach it what no longer holds, and more than one pass over a few hundred learns
        them by heart.
        """
        for batch in self:
            trainer.train(batch.take(batch.event_ms >= since_ms))
        return trainer

    def newest_ms(self, rows: int, since_ms: int) -> int:
        """The time since which there are `rows` examples here, or `since_ms` if there are fewer since then."""
        times = np.concatenate([batch.event_ms for batch in self] or [np.zeros(0, np.int64)])
        times = np.sort(times[times >= since_ms])
        if len(times) <= rows:
            return since_ms
        return int(times[-rows]) if rows else int(times[-1]) + 1

    def state(self) -> Arrays:
        """All columns end to end, and the sizes of the batches; empty without any."""
        if not self._batches:
            return {}
        whole = Batch.concat(self._batches)
        columns = {name: getattr(whole, name) for name in BATCH_ARRAYS}
        return columns | {"sizes": np.array([len(batch) for batch in self._batches], np.int64)}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self._batches = []
        if not state:
            return
        sizes = state["sizes"].tolist()
        whole = Batch([""] * sum(sizes), **{name: state[name] for name in BATCH_ARRAYS})
        start = 0
        for size in sizes:
            self._batches.append(whole.slice(start, start + size))
            start += size

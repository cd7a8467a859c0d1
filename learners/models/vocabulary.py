"""Which id has which table row, for `table = "exact"`: no two ids share a row, and rare or old ids have none.

After Monolith (Liu et al. 2022): an id gets a row of its own once it has come `admit_after` times, and loses it when it
was not seen for `expire_after` examples. Until then, and while there is no room, all such ids of a field share one row.
So a vocabulary that grows without end stays within `rows` a field.

What an id is now follows from `ids` alone, which travels with the rows: a serving worker knows nothing else. The counts
and times that decide who comes and goes stay with the learner, and in its checkpoint.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.batch import ModelConfig
from learners.models import vocabulary_kernels as kernels
from learners.models.vocabulary_kernels import RARE, RESERVED

SWEEP_EVERY = 16_384  # examples between two looks at what has expired
ROOM = 8  # of a field that is full, one row in so many is taken from the ids that were not seen for longest
COUNTERS = 4  # for each row of the table; ids that have no row share them

Int64s = NDArray[np.int64]


class Vocabulary:
    """The rows of `fields` [F], the field of each column of ids. R rows are those of the table.

    `ids` i64[R] is the id of each row, 0 for a free one and a field's reserved ones. `seen` i64[R] is the example at
    which a row's id came last, `clock` how many examples were learned. `counts` are approximate: two ids may share a
    counter, which lets one in early. They are halved when there were as many sightings as counters, so that old ones
    fade.
    """

    def __init__(self, config: ModelConfig, fields: Int64s) -> None:
        self.size, self.fields = config.rows, fields
        self.admit_after, self.expire_after = config.admit_after, config.expire_after
        self._fields = int(fields.max()) + 1 if len(fields) else 0
        total = self._fields * self.size
        self.ids = np.zeros(total, np.int64)
        self.seen = np.zeros(total, np.int64)
        self.clock = self.noted = 0
        self.counts = np.zeros(_power_of_two(COUNTERS * total), np.uint8)
        self._slots = np.empty(_power_of_two(2 * total), np.int32)
        self._index()

    def _index(self) -> None:
        """Everything that follows from `ids`."""
        kernels.fill(self._slots, self.ids, self.size)
        self._free = np.zeros((self._fields, self.size), np.int64)
        self._left = np.zeros(self._fields, np.int64)
        for field, ids in enumerate(self.ids.reshape(-1, self.size)):
            free = field * self.size + RESERVED + np.flatnonzero(ids[RESERVED:] == 0)[::-1]
            self._free[field, : len(free)] = free  # the lowest comes last, and is given first
            self._left[field] = len(free)

    def rows(self, keys: Int64s) -> Int64s:
        """The table row i64[n, F] of each id i64[n, F]."""
        keys = np.ascontiguousarray(keys)
        found = np.empty(keys.shape, np.int64)
        kernels.find(self._slots, self.ids, self.size, self.fields, keys, found)
        return found

    def note(self, keys: Int64s) -> tuple[Int64s, Int64s]:
        """What ids i64[n, F] of n learned examples change: rows that were given to ids, and rows taken from some."""
        keys, before = np.ascontiguousarray(keys), self.clock
        self.clock += len(keys)
        admitted, wanted = np.empty(keys.size, np.int64), np.zeros(self._fields, np.int64)
        given, counted = kernels.note(
            self._slots, self.ids, self.size, self.fields, keys, self.seen, self.clock, self.counts, self.admit_after,
            self._free, self._left, wanted, admitted,
        )  # fmt: skip
        self.noted += counted
        if self.noted >= len(self.counts):
            self.counts >>= 1
            self.noted = 0
        due = self.expire_after and before // SWEEP_EVERY != self.clock // SWEEP_EVERY
        evicted = self._swept(wanted > 0) if due or wanted.any() else np.empty(0, np.int64)
        return admitted[:given], evicted

    def _swept(self, full: NDArray[np.bool_]) -> Int64s:
        """Takes the rows of ids that have expired, and of a `full` field those not seen for longest; rising."""
        taken = self.ids != 0
        gone = (
            taken & (self.seen < self.clock - self.expire_after)
            if self.expire_after
            else np.zeros_like(taken)
        )
        for field in np.flatnonzero(full):
            here = slice(field * self.size, (field + 1) * self.size)
            room = max(1, (self.size - RESERVED) // ROOM) - int(gone[here].sum())
            # Not those of this very step: what was just learned would be lost.
            old = np.flatnonzero(taken[here] & ~gone[here] & (self.seen[here] < self.clock))
            oldest = old[np.argsort(self.seen[here][old], kind="stable")][: max(room, 0)]
            gone[field * self.size + oldest] = True
        rows = np.flatnonzero(gone)
        if len(rows):
            self.ids[rows] = self.seen[rows] = 0
            self._index()
        return rows

    def rare(self, rows: Int64s) -> Int64s:
        """The row that ids without one share, of the field of each row."""
        return rows // self.size * self.size + RARE

    def problem(self, index: Int64s, ids: Int64s) -> str | None:
        """Why rows `index` (rising) cannot have these ids: an id at two rows, or at one that is reserved; else None."""
        if ids[index % self.size < RESERVED].any():
            return "a reserved row has an id"
        after = self.ids.copy()
        after[index] = ids
        taken = np.flatnonzero(after)
        pairs = np.column_stack((taken // self.size, after[taken]))
        if len(np.unique(pairs, axis=0)) != len(pairs):
            return "an id has two rows"
        return None

    def write(self, index: Int64s, ids: Int64s) -> None:
        """Rows `index` have these ids from now on; 0 frees one. `problem` found nothing."""
        if not np.array_equal(self.ids[index], ids):
            self.ids[index] = ids
            self._index()

    def memory(self, rows: Int64s) -> dict[str, Tensor]:
        """What the learner needs besides the ids: for a checkpoint."""
        return {
            "vocabulary.seen": torch.from_numpy(self.seen[rows]),
            "vocabulary.counts": torch.from_numpy(self.counts.copy()),
            "vocabulary.clock": torch.tensor([self.clock, self.noted]),
        }

    def restore(self, tensors: dict[str, Tensor], rows: Int64s) -> None:
        """The inverse of `memory`, after `write`. KeyError if one is not there, ValueError for another shape."""
        counts = tensors["vocabulary.counts"].numpy()
        if counts.shape != self.counts.shape:
            raise ValueError("vocabulary.counts has another shape")
        self.seen[rows] = tensors["vocabulary.seen"].numpy()
        self.counts[:] = counts
        self.clock, self.noted = tensors["vocabulary.clock"].tolist()

    def copy_from(self, other: "Vocabulary") -> None:
        """Become equal to another one of the same sizes."""
        self.ids[:], self.seen[:], self.counts[:] = other.ids, other.seen, other.counts
        self.clock, self.noted = other.clock, other.noted
        self._index()


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 1).bit_length()

"""The columns that travel between the steps: events, labels, labelled rows, feedback. `wire` makes bytes of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, lineage_number, refresh_number
from learners.late import real_share
from streams.task import Task

_NO_ARM = np.zeros(0, np.int32)  # stands for rows that are not scored yet, or were without a canary
_UNMARKED = np.zeros(0, np.bool_)  # ... and for ones that are not explored,
_CERTAIN = np.zeros(0, np.float32)  # whose labels are seen for certain
MOST_BYTES = 4 << 20
"""About the size of one record, in bytes: what is larger is cut (`cuts`), since Kafka refuses too large a record."""


@dataclass(frozen=True)
class Rows:
    """`n` events of one task. `E` entities, `I` ids (`Schema.ids`: model categories, then blocks), `V` number fields,
    `N` model numbers.

    Shapes: `ids` n strings; `event_ms`, `received_ms` (Kafka's timestamp of the event), `offset` int64 [n]; `partition`
    int32 [n] (with `offset`: where the event stands in the events topic); `late` bool [n]; `keys` int64 [n, E];
    `categories` int64 [n, I]; `values` float64 [n, V]; `numbers` float32 [n, N], NaN where not yet known. `schema` is
    the `Task.rows_hash` of the task that made them. `arm` int32 [n]: which arm of a canary scored each
    (`learners.canary.arm_code`), 0 until then. `explored` bool [n], `propensity` and `weight` float32 [n]: see
    `streams.exploration`; False, 1 and 1 until then.
    """

    ids: list[str]
    event_ms: NDArray[np.int64]
    received_ms: NDArray[np.int64]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    late: NDArray[np.bool_]
    keys: NDArray[np.int64]
    categories: NDArray[np.int64]
    values: NDArray[np.float64]
    numbers: NDArray[np.float32]
    schema: str
    arm: NDArray[np.int32] = field(default_factory=lambda: _NO_ARM)
    explored: NDArray[np.bool_] = field(default_factory=lambda: _UNMARKED)
    propensity: NDArray[np.float32] = field(default_factory=lambda: _CERTAIN)
    weight: NDArray[np.float32] = field(default_factory=lambda: _CERTAIN)

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.arm is _NO_ARM:
            object.__setattr__(self, "arm", np.zeros(n, np.int32))
        if self.explored is _UNMARKED:
            object.__setattr__(self, "explored", np.zeros(n, np.bool_))
        for name in ("propensity", "weight"):
            if getattr(self, name) is _CERTAIN:
                object.__setattr__(self, name, np.ones(n, np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """About how many bytes the rows take as a record."""
        arrays: list[NDArray[Any]] = [getattr(self, name) for name in ROW_ARRAYS]
        return _text_bytes(self.ids) + sum(array.nbytes for array in arrays)

    def take(self, index: NDArray[Any]) -> "Rows":
        """The rows of a boolean mask [n] or an index array, in that order (a copy)."""
        if index.dtype == np.bool_:
            index = np.flatnonzero(index)
        arrays = {name: getattr(self, name)[index] for name in ROW_ARRAYS}
        return Rows([self.ids[i] for i in index.tolist()], **arrays, schema=self.schema)

    def part(self, place: slice) -> "Rows":
        """Rows that stand together (not a copy)."""
        arrays = {name: getattr(self, name)[place] for name in ROW_ARRAYS}
        return Rows(self.ids[place], **arrays, schema=self.schema)

    def with_late(self, late: NDArray[np.bool_]) -> "Rows":
        """The same rows with other late marks."""
        return replace(self, late=late)

    @staticmethod
    def concat(parts: Sequence["Rows"]) -> "Rows":
        """All rows in order; at least one part is needed, and all of one schema."""
        if len(parts) == 1:
            return parts[0]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ROW_ARRAYS}
        return Rows([i for part in parts for i in part.ids], **arrays, schema=parts[0].schema)

    @staticmethod
    def empty(task: Task) -> "Rows":
        """No rows, with the task's column counts."""
        return Rows(
            [],
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.int64),
            np.zeros(0, np.bool_),
            np.zeros((0, len(task.entities)), np.int64),
            np.zeros((0, task.schema.ids), np.int64),
            np.zeros((0, len(task.number_fields)), np.float64),
            np.zeros((0, len(task.numbers)), np.float32),
            task.rows_hash,
        )


ROW_ARRAYS = (
    "event_ms", "received_ms", "partition", "offset", "late", "keys", "categories", "values", "numbers", "arm",
    "explored", "propensity", "weight",
)  # fmt: skip
"""The arrays of `Rows`, all of length n."""


@dataclass(frozen=True)
class Labels:
    """`n` labels by event id. `known_ms` int64 [n] is -1 where the label's record does not say when it became known.

    `partition` int32 [n] and `offset` int64 [n]: where each stands in the labels topic.
    """

    ids: list[str]
    label: NDArray[np.float32]
    known_ms: NDArray[np.int64]
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """About how many bytes the labels take as a record."""
        return _text_bytes(self.ids) + 24 * len(self)

    def take(self, index: NDArray[Any]) -> "Labels":
        """The labels of an index array, in that order."""
        arrays = (self.label, self.known_ms, self.partition, self.offset)
        return Labels([self.ids[i] for i in index.tolist()], *(array[index] for array in arrays))

    @staticmethod
    def none() -> "Labels":
        """No labels."""
        none = np.zeros(0, np.int64)
        return Labels([], np.zeros(0, np.float32), none, none.astype(np.int32), none)


@dataclass(frozen=True)
class Feedback:
    """`n` labels on their way to the label rates of one entity: its key, when the label was known, the label.

    `back` bool [n] marks those that are taken back: they were added as they are here, and turned out otherwise.
    """

    keys: NDArray[np.int64]
    known_ms: NDArray[np.int64]
    label: NDArray[np.float64]
    back: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """About how many bytes the labels take as a record."""
        return 25 * len(self)

    def take(self, index: NDArray[Any]) -> "Feedback":
        """The labels of an index array, in that order."""
        return Feedback(self.keys[index], self.known_ms[index], self.label[index], self.back[index])


@dataclass(frozen=True)
class Labelled:
    """Rows with their label: the learner's only input. `default` marks labels that are the task's missing value.

    Shapes: `label` float32 [n], `known_ms` int64 [n], `default` bool [n], `served` float32 [n] or [n, K] (the score
    that was served), `version` n strings; `late_share` float32 [n], of a default: the share of labels that come late
    and say otherwise (`learners.late`), 0 of all others; `corrects` bool [n] as in `Batch`.
    """

    rows: Rows
    served: NDArray[np.float32]
    version: list[str]
    label: NDArray[np.float32]
    known_ms: NDArray[np.int64]
    default: NDArray[np.bool_]
    late_share: NDArray[np.float32]
    corrects: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """About how many bytes the rows take as a record."""
        return self.rows.nbytes + _text_bytes(self.version) + 25 * len(self)

    @property
    def told(self) -> NDArray[np.float32]:
        """What was served as one number [n]: of several classes the probability of the one that it was."""
        if self.served.ndim == 1:
            return self.served
        return self.served[np.arange(len(self)), self.label.astype(np.int64)]

    def take(self, index: NDArray[Any]) -> "Labelled":
        """The rows of an index array, in that order."""
        arrays = {name: getattr(self, name)[index] for name in LABELLED_ARRAYS}
        version = [self.version[i] for i in index.tolist()]
        return Labelled(self.rows.take(index), version=version, **arrays)

    @staticmethod
    def concat(parts: Sequence["Labelled"]) -> "Labelled":
        """All rows in order; at least one part is needed."""
        if len(parts) == 1:
            return parts[0]
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in LABELLED_ARRAYS}
        version = [version for part in parts for version in part.version]
        return Labelled(Rows.concat([part.rows for part in parts]), version=version, **arrays)

    def batch(self) -> Batch:
        """The learner's view of the same rows."""
        rows = self.rows
        number = {name: (lineage_number(name), refresh_number(name)) for name in set(self.version)}
        version = np.array([number[name] for name in self.version], np.int32).reshape(-1, 2)
        return Batch(
            rows.ids,
            rows.event_ms,
            self.known_ms,
            rows.numbers,
            rows.categories,
            self.served,
            self.label,
            real_share(self.label, self.served, self.late_share) * rows.weight,
            self.corrects,
            rows.keys[:, 0],
            rows.arm,
            version[:, 0],
            version[:, 1],
        )


LABELLED_ARRAYS = ("served", "label", "known_ms", "default", "late_share", "corrects")
"""The arrays of `Labelled` besides its rows, all of length n."""


class _Batch(Protocol):
    """What `cuts` must know of rows, examples, labels or feedback."""

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...


def cuts(batch: _Batch, most_bytes: int = MOST_BYTES) -> list[NDArray[np.int64]]:
    """Index arrays that cut `batch` into runs of rows, in order, of about `most_bytes` at most as one record.

    Usage: `for cut in cuts(rows): send(encode_rows(rows.take(cut)))`. No rows give no cut.
    """
    pieces = max(1, -(-batch.nbytes // most_bytes))
    if pieces == 1:
        return [np.arange(len(batch))] if len(batch) else []
    return [part for part in np.array_split(np.arange(len(batch)), pieces) if len(part)]


def _text_bytes(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) + 4 * len(texts)

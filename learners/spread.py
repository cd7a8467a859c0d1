"""A table whose rows are spread over the ranks: row r lies with rank r % ranks. The rest of the learner sees a tensor.

Plain torch.distributed, for a table, and the optimiser's memory of it, that does not fit into one GPU. Reading rows is
done by all ranks together, as whatever is in `learners.parallel`: each sends those that it has. Writing needs no word,
as every rank knows what is written and keeps its part. Rows are copied and never added, so a spread table is the same,
to the bit, as one that is whole.

Only what the learner does with a table works: reading and writing rows by their numbers or by a mask. All else is a
TypeError, so nothing gathers the whole table unseen.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learners.parallel import ranks

aten: Any = torch.ops.aten


class Spread(Tensor):
    """A tensor [rows, width] of which this rank has `part`, the rows whose number leaves its rank."""

    part: Tensor

    @staticmethod
    def __new__(cls, part: Tensor, rows: int) -> "Spread":
        """A table of so many rows in all."""
        shape = (rows, *part.shape[1:])
        made: Spread = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=part.dtype, device=part.device)
        made.part = part
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Spread({tuple(self.shape)}, {len(self.part)} here)"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch is asked to do with the table."""
        if func not in _DONE:
            raise TypeError(f"{func} does not work on a table that is spread over ranks")
        return _DONE[func](*args, **(kwargs or {}))


def spread(table: Tensor) -> Spread:
    """This rank's part of a table that is whole. The rest may be freed."""
    here = ranks()
    return Spread(table[here.rank :: here.count].clone(), len(table))


def _numbers(index: Tensor) -> Tensor:
    """Row numbers of what rows are asked for by: numbers, or a mask."""
    return index.nonzero().squeeze(1) if index.dtype == torch.bool else index


def _read(table: Spread, index: Tensor) -> Tensor:
    """Rows [u, width] by their numbers [u]."""
    here, found = ranks(), table.part.new_empty((len(index), *table.part.shape[1:]))
    owner = index % here.count
    most = int(torch.bincount(owner, minlength=here.count).max()) if len(index) else 0
    mine = table.part.index_select(0, index[owner == here.rank] // here.count)
    padded = torch.cat((mine, mine.new_zeros((most - len(mine), *mine.shape[1:]))))
    for rank, rows in enumerate(here.exchanged(padded)):
        at = (owner == rank).nonzero().squeeze(1)
        found[at] = rows[: len(at)]
    return found


def _mine(table: Spread, index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Where in this rank's part which of the values go; a single one goes everywhere."""
    here = ranks()
    own = index % here.count == here.rank
    each = values if values.ndim == 0 else values.expand((len(index), *table.part.shape[1:]))[own]
    return index[own] // here.count, each.to(table.part)


def _index_select(table: Spread, _: int, index: Tensor) -> Tensor:
    return _read(table, index)


def _index(table: Spread, indices: Sequence[Tensor]) -> Tensor:
    return _read(table, _numbers(indices[0]))


def _embedding(table: Spread, indices: Tensor, *_: Any) -> Tensor:
    unique, inverse = torch.unique(indices, return_inverse=True)
    return _read(table, unique)[inverse]


def _index_put(table: Spread, indices: Sequence[Tensor], values: Tensor, *_: Any) -> Spread:
    at, each = _mine(table, _numbers(indices[0]), values)
    table.part[at] = each
    return table


def _index_copy(table: Spread, _: int, index: Tensor, source: Tensor) -> Spread:
    at, each = _mine(table, index, source)
    table.part.index_copy_(0, at, each)
    return table


def _index_add(table: Spread, _: int, index: Tensor, source: Tensor) -> Spread:
    at, each = _mine(table, index, source)
    table.part.index_add_(0, at, each)
    return table


def _index_fill(table: Spread, _: int, index: Tensor, value: float) -> Spread:
    return _index_put(table, [index], torch.tensor(value))


def _new_zeros(table: Spread, size: Sequence[int], **_: Any) -> Tensor:
    """Memory of the table's rows is spread as they are; anything smaller is whole."""
    if size[0] != len(table):
        return table.part.new_zeros(size)
    return Spread(table.part.new_zeros((len(table.part), *size[1:])), len(table))


def _moved(table: Spread, **how: Any) -> Spread:
    return Spread(aten._to_copy.default(table.part, **how), len(table))


def _same(table: Spread) -> Spread:
    return table


_DONE: dict[Any, Callable[..., Any]] = {
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten.embedding.default: _embedding,
    aten.index_put_.default: _index_put,
    aten.index_copy_.default: _index_copy,
    aten.index_add_.default: _index_add,
    aten.index_fill_.int_Scalar: _index_fill,
    aten.new_zeros.default: _new_zeros,
    aten._to_copy.default: _moved,
    aten.detach.default: _same,
}

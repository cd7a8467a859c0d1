"""Ranks: processes that learn one model together, under torchrun.

The rows of a step are cut into `shards`, a setting of the model. The gradient of each shard is computed by itself, by
the rank that has it, and all are added in their order, by every rank. So a step is the same to the bit with any number
of ranks, one as well: what two ranks learned, one goes on with or repeats for a check, and no reduction whose order
depends on the network is in it. (Data parallelism as in Li et al. 2020, without its ring.)

Whoever computes here computes with all ranks: they must all call the same, in the same order. `streams.crew` sees to
it for a learner.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from infra.errors import UserError
from infra.settings import torchrun_attempt

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others. One that ends is noticed at once; this is for one that hangs."""


class Apart(Exception):
    """The ranks hold different weights: they run on machines that compute otherwise, or something is wrong here."""


@dataclass(frozen=True)
class Ranks:
    """Which rank this process is, of how many. Alone, nothing is sent."""

    rank: int = 0
    count: int = 1

    def added(self, of_shard: Callable[[slice], Tensor], rows: int, shards: int, mark: Tensor) -> Tensor:
        """The sum over the shards of `rows` rows, in their order, of the vectors [m] that `of_shard` gives.

        `mark` is a scalar that depends on the weights: raises Apart if it is not the same bits everywhere.
        """
        parts = [torch.cat((mark.reshape(1), of_shard(part))) for part in self._mine(rows, shards)]
        total: Tensor | None = None
        for vector in self._gathered(parts, shards):
            if not torch.equal(vector[0], mark):
                raise Apart("the ranks hold different weights; they must run on machines of the same kind")
            total = vector if total is None else total + vector
        assert total is not None
        return total[1:]

    def joined(self, of_shard: Callable[[slice], Tensor], rows: int, shards: int) -> Tensor:
        """A vector [rows] whose parts `of_shard` gives, each the length of its part."""
        most = -(-rows // shards)
        parts = [
            torch.nn.functional.pad(found, (0, most - len(found)))
            for found in map(of_shard, self._mine(rows, shards))
        ]
        lengths = [part.stop - part.start for part in cuts(rows, shards)]
        gathered = zip(self._gathered(parts, shards), lengths, strict=True)
        return torch.cat([vector[:length] for vector, length in gathered])

    def exchanged(self, mine: Tensor) -> list[Tensor]:
        """A tensor from each rank, by rank; all are of one shape."""
        if self.count == 1:
            return [mine]
        everyone = [torch.empty_like(mine) for _ in range(self.count)]
        with _together():
            dist.all_gather(everyone, mine.contiguous())
        return everyone

    def tell(self, what: Any) -> None:
        """Rank 0 sends a value that can be pickled; the others `hear` it."""
        if self.count > 1:
            self._broadcast([what])

    def hear(self) -> Any:
        """What rank 0 tells next."""
        box: list[Any] = [None]
        self._broadcast(box)
        return box[0]

    def _broadcast(self, box: list[Any]) -> None:
        with _together():
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))

    def _mine(self, rows: int, shards: int) -> Iterator[slice]:
        yield from cuts(rows, shards)[self.rank :: self.count]

    def _gathered(self, parts: list[Tensor], shards: int) -> list[Tensor]:
        """The vectors of all shards in their order; `parts` are those of this rank, all of one length."""
        if self.count == 1:
            return parts
        most = -(-shards // self.count)
        everyone = self.exchanged(torch.stack(parts + [torch.zeros_like(parts[0])] * (most - len(parts))))
        return [everyone[shard % self.count][shard // self.count] for shard in range(shards)]


def cuts(rows: int, shards: int) -> list[slice]:
    """Neighbouring parts of nearly the same length; some are empty where there are fewer rows than shards."""
    ends = [rows * shard // shards for shard in range(shards + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


_ranks = Ranks()


def ranks() -> Ranks:
    """The ranks that this process is one of: itself alone, unless it has joined others."""
    return _ranks


@contextmanager
def joined() -> Iterator[Ranks]:
    """Be one of torchrun's ranks while the body runs: over NCCL between GPUs, each rank its own, else over gloo.

    Outside of torchrun this process stays alone.
    """
    global _ranks
    if not dist.is_torchelastic_launched():
        yield _ranks
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(dist.get_node_local_rank())
    with _together():
        store, rank, count = next(rendezvous("env://"))
        # torchrun keeps the store over restarts, and with it the addresses of ranks that are dead.
        own = dist.PrefixStore(f"attempt-{torchrun_attempt()}", store)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=PATIENCE)
    _ranks = Ranks(rank, count)
    try:
        yield _ranks
    finally:
        _ranks = Ranks()
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """What torch says when a rank has gone is an error that a person can mend."""
    try:
        yield
    except RuntimeError as error:  # gloo's; NCCL's is one of its children
        said = str(error).partition("\n")[0]
        raise UserError(
            f"another rank of this learner is gone: {said}",
            "see the log of the rank that ended first; torchrun --max-restarts starts all of them again",
        ) from error

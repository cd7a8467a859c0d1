"""One step of learning, for each of the two kinds of families: by gradients, or by counting.

Both promise the same: a step is accepted whole, or it is rejected and every bit is as before.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from learners.batch import ModelConfig
from learners.models import Counter, Net
from learners.models.base import Former
from learners.optim import Optimiser
from learners.parallel import ranks
from learners.schedules import Schedule

# Rows of a step, and the same times weights: above, torch's matrix products make up for what its calls cost.
LARGEST_COMPILED, MOST_COMPILED = 64, 4_000_000
COMPILED_FAMILIES = ("dcn", "deepfm", "logistic", "mlp")
COMPILED_OPTIMISERS = ("sgd", "adagrad", "adam", "adamw")


Passed = tuple[Tensor, tuple[Tensor, ...], Former]


@dataclass(frozen=True)
class Learned:
    """What came of some steps: the table rows [u] they touched, how many `examples` were learned in how many `steps`,
    how many steps were rejected, and the rows' scores [n] before their own step, if they were wanted.
    """

    touched: Tensor
    examples: int
    steps: int
    rejected: int
    scores: Tensor | None


class Steps:
    """What both kinds of lessons share: a call of `learn` is one step."""

    model: Net | Counter

    @property
    def batch_size(self) -> int:
        """Rows of the next step."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Rows of the next call of `learn`."""
        return self.batch_size

    def step(
        self, numbers: Tensor, index: Tensor, label: Tensor, weight: Tensor | None = None
    ) -> Tensor | None:
        """Learn a step; the table rows that it touched, or None if it was rejected."""
        raise NotImplementedError

    def learn(
        self, numbers: Tensor, index: Tensor, label: Tensor, weight: Tensor, *, scored: bool = False
    ) -> Learned:
        """Learn raw numbers [n, N], table rows [n, C], labels and weights [n]; with `scored` each is scored before."""
        scores = None
        if scored:
            with torch.inference_mode():
                scores = self.model.scores(numbers, functional.embedding(index, self.model.table))
        # None is not only faster: a sum with weights that are all 1 may differ from a plain one in the last bit.
        touched = self.step(numbers, index, label, None if bool((weight == 1.0).all()) else weight)
        if touched is None:
            return Learned(index.new_empty(0), 0, 0, 1, scores)
        return Learned(touched, len(label), 1, 0, scores)


class GradientLesson(Steps):
    """A net, its optimiser and its schedule."""

    model: Net

    def __init__(self, model: Net, config: ModelConfig) -> None:
        self.model = model
        self.optimiser = Optimiser(model, model.table, config)
        self.schedule = Schedule(config)
        self.shards, self._short = config.shards, config.precision == "bfloat16"

    @property
    def batch_size(self) -> int:
        """Rows of the next step."""
        return self.schedule.batch_size

    def step(
        self, numbers: Tensor, index: Tensor, label: Tensor, weight: Tensor | None = None
    ) -> Tensor | None:
        """Learn raw numbers [n, N], table rows [n, C], labels [n] and their weights [n] (None: all 1).

        The table rows that were touched; None if a label is of no class, or the loss, the gradient or
        a new weight is not finite: the step is rejected.
        """
        if not self.model.learnable(label):
            return None
        found: tuple[Tensor, Tensor] = torch.unique(index, return_inverse=True)
        unique, inverse = found
        # index_select takes a third of the time of table[unique].
        rows = self.model.table.index_select(0, unique)
        loss, gradients, statistics = self.passed(numbers, inverse, rows, label, weight)
        proposal = self.optimiser.propose(loss, gradients, unique, rows, self.schedule.share)
        if not proposal.finite:
            return None
        self.model.settle(statistics)
        self.optimiser.accept(proposal)
        self.model.remember(label)
        self.schedule.advance(float(loss.detach()) if self.schedule.needs_loss else 0.0)
        return unique

    def passed(
        self, numbers: Tensor, inverse: Tensor, rows: Tensor, label: Tensor, weight: Tensor | None
    ) -> Passed:
        """The forward and the backward pass: loss, gradients of the dense weights and, last, of the table's `rows`
        [u, width], and the running statistics after the step. The model stays as it is.
        """
        former = self.model.observe(numbers, label, weight)
        loss, gradients = self._gradients(numbers, inverse, rows.requires_grad_(), label, weight)
        return loss, gradients, self.model.restore(former)

    def objective(self, numbers: Tensor, rows: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of rows with gathered table rows [n, F, width], in the precision of the settings."""
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self._short):
            return self.model.objective(numbers, rows, label, weight)

    def _gradients(
        self, numbers: Tensor, inverse: Tensor, rows: Tensor, label: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        wanted = (*self.model.parameters(), rows)

        def of(part: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
            at = None if weight is None else weight[part]
            loss = self.objective(numbers[part], functional.embedding(inverse[part], rows), label[part], at)
            return loss, torch.autograd.grad(loss, wanted)

        def of_shard(part: slice) -> Tensor:
            if part.stop == part.start:
                return rows.new_zeros(1 + sum(each.numel() for each in wanted))
            loss, gradients = of(part)
            vector: Tensor = torch.cat([each.detach().flatten() for each in (loss, *gradients)])
            return vector.mul_((part.stop - part.start) / len(label))

        if self.shards == 1:
            return of(slice(0, len(label)))
        mark = self.optimiser.dense.sum()
        total = ranks().added(of_shard, len(label), self.shards, mark)
        dense = len(self.optimiser.dense)
        return total[0], (total[1 : 1 + dense], total[1 + dense :].view_as(rows))

    def rewarm(self) -> None:
        """Begin the schedule again."""
        self.schedule.rewarm()

    def copy_memory(self, other: "Lesson") -> None:
        """Nothing: a copy of a net has fresh optimiser memory, as it may learn with other settings."""

    def forget(self, rows: Tensor) -> None:
        """Table rows int64 [u] stand for something else now: the optimiser remembers nothing of them."""
        for memory in (*self.optimiser.table_memory, self.optimiser.table_steps):
            memory[rows] = 0.0

    def memory(self, touched: Tensor) -> dict[str, Tensor]:
        """The optimiser's memory, of table rows that of `touched` [u] only, on the CPU."""
        optimiser = self.optimiser
        tensors = {"dense_steps": optimiser.dense_steps.cpu()}
        tensors["table_steps"] = optimiser.table_steps[touched].cpu()
        memories = zip(optimiser.rule.memory, optimiser.dense_memory, optimiser.table_memory, strict=True)
        for name, dense_memory, table_memory in memories:
            tensors[f"dense_memory.{name}"] = dense_memory.cpu()
            tensors[f"table_memory.{name}"] = table_memory[touched].cpu()
        return tensors

    def restore(self, tensors: dict[str, Tensor], touched: Tensor) -> None:
        """The inverse of `memory`, for a lesson that has learned nothing. KeyError if one is not there."""
        optimiser = self.optimiser
        optimiser.dense_steps.copy_(tensors["dense_steps"])
        optimiser.table_steps[touched] = tensors["table_steps"].to(touched.device)
        memories = zip(optimiser.rule.memory, optimiser.dense_memory, optimiser.table_memory, strict=True)
        for name, dense_memory, table_memory in memories:
            dense_memory.copy_(tensors[f"dense_memory.{name}"])
            table_memory[touched] = tensors[f"table_memory.{name}"].to(touched.device)

    def record(self) -> dict[str, Any]:
        """What else there is to keep, ready for JSON."""
        return self.schedule.state()

    def load(self, record: dict[str, Any]) -> None:
        """The inverse of `record`."""
        self.schedule.load(record)


class CountingLesson(Steps):
    """A family that learns by itself; everything that it keeps is its own."""

    model: Counter

    def __init__(self, model: Counter, config: ModelConfig) -> None:
        self.model = model
        self._batch_size = config.batch_size

    @property
    def batch_size(self) -> int:
        """Rows of a step."""
        return self._batch_size

    def step(
        self, numbers: Tensor, index: Tensor, label: Tensor, weight: Tensor | None = None
    ) -> Tensor | None:
        """Learn raw numbers [n, N], table rows [n, C], labels [n] and their weights [n] (None: all 1).

        The table rows that were touched; None if a label is neither 0 nor 1 or a weight not above 0: the step is
        rejected.
        """
        return self.model.learn(numbers, index, label, weight)

    def rewarm(self) -> None:
        """Nothing: counts have no rate."""

    def copy_memory(self, other: "Lesson") -> None:
        """Remember what another lesson of the same family and sizes does."""
        if not isinstance(other, CountingLesson):
            raise TypeError("only a family that counts has memory to copy")
        for name, value in other.model.memory().items():
            self.model.memory()[name].copy_(value)

    def forget(self, rows: Tensor) -> None:
        """Nothing: rows are found by hash, and stand for what they stood for."""

    def memory(self, touched: Tensor) -> dict[str, Tensor]:
        """All that learning needs besides the weights."""
        return {f"memory.{name}": value.clone() for name, value in self.model.memory().items()}

    def restore(self, tensors: dict[str, Tensor], touched: Tensor) -> None:
        """The inverse of `memory`. KeyError if one is not there, ValueError if it has another shape."""
        for name, value in self.model.memory().items():
            found = tensors[f"memory.{name}"]
            if (found.shape, found.dtype) != (value.shape, value.dtype):
                raise ValueError(f"memory.{name} has another shape or type")
            value.copy_(found)

    def record(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def load(self, record: dict[str, Any]) -> None:
        """Nothing more."""


def is_compiled(model: Net, config: ModelConfig) -> bool:
    """Whether a net learns by `CompiledLesson`.

    That is decided by shape, settings and device, never by the data, so that the same batches give the same bits.
    """
    plain = config.loss in ("auto", "bce") and config.activation == "relu" and not config.momentum
    steady = (
        not config.smallest_batch and config.schedule != "plateau" and config.batch_size <= LARGEST_COMPILED
    )
    known = config.family in COMPILED_FAMILIES and config.optimiser in COMPILED_OPTIMISERS
    small = config.batch_size * sum(weight.numel() for weight in model.parameters()) <= MOST_COMPILED
    plain = plain and model.schema.target.kind == "binary"
    plain = plain and config.shards == 1 and config.precision == "float32" and type(model.table) is Tensor
    here = model.table.device.type == "cpu" and not model.schema.blocks and config.table == "hashed"
    return plain and steady and known and small and here


Lesson = GradientLesson | CountingLesson


def lesson_of(model: Net | Counter, config: ModelConfig) -> Lesson:
    """The way in which the model's family learns, compiled where these settings take steps of a few rows."""
    if isinstance(model, Counter):
        return CountingLesson(model, config)
    if is_compiled(model, config):
        from learners.compiled import CompiledLesson  # only who learns so waits for the compiler

        return CompiledLesson(model, config)
    if model.table.device.type == "cuda":
        from learners.graphed import GraphedLesson, tell

        if config.shards == 1:
            return GraphedLesson(model, config)
        tell(f"steps of {config.shards} shards are not captured: ranks exchange gradients in their midst")
    return GradientLesson(model, config)

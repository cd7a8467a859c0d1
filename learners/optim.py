"""Update rules, written once for two kinds of weights: the dense vector of a model, and the table rows of one
step.

A rule is a pure function: it gets values, gradients and its memory of exactly the weights that the step
touches, and gives new values and new memory. Nothing is written before the whole step has been found finite,
and a step costs what it touches, never the size of the table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learners.batch import ModelConfig

# Memory is a tuple of tensors of the value's shape, one for each name in `Rule.memory`. `steps` counts this
# step too: a [1] tensor for the dense vector, [u, 1] for rows, so that a row seen for the first time gets its
# own bias correction.
Memory = tuple[Tensor, ...]
Update = Callable[[Tensor, Memory, Tensor], tuple[Tensor, Memory]]


@dataclass(frozen=True)
class Rule:
    """An optimiser: the names of what it remembers for each weight, and `update(gradient, memory, steps)`,
    which gives the direction to be multiplied by the learning rate and subtracted, and the new memory.
    """

    memory: tuple[str, ...]
    update: Update

    def start(self, values: Tensor) -> Memory:
        """The memory of weights that no step has touched."""
        return tuple(torch.zeros_like(values) for _ in self.memory)


def sgd(gradient: Tensor, memory: Memory, steps: Tensor) -> tuple[Tensor, Memory]:
    """Plain gradient descent; no memory."""
    return gradient, memory


def adagrad(gradient: Tensor, memory: Memory, steps: Tensor) -> tuple[Tensor, Memory]:
    """Duchi, Hazan & Singer 2011. Remembers the sum of squared gradients."""
    total = torch.addcmul(memory[0], gradient, gradient)
    return gradient / (total.sqrt() + 1e-10), (total,)


def adam(gradient: Tensor, memory: Memory, steps: Tensor) -> tuple[Tensor, Memory]:
    """Kingma & Ba 2015; on rows it is the lazy form: an untouched row keeps its moments and its own step
    count.
    """
    first = torch.lerp(memory[0], gradient, 0.1)
    second = torch.addcmul(memory[1] * 0.999, gradient, gradient, value=0.001)
    scale = torch.sqrt(1.0 - 0.999**steps) / (1.0 - 0.9**steps)
    return first * scale / (second.sqrt() + 1e-8), (first, second)


RULES = {
    "sgd": Rule((), sgd),
    "adagrad": Rule(("squares",), adagrad),
    "adam": Rule(("first", "second"), adam),
}


@dataclass(frozen=True)
class Proposal:
    """New values for one step, not yet written: `dense` [P], table `rows` [u, width] at `index` [u], and
    their memory.
    """

    dense: Tensor
    dense_memory: Memory
    index: Tensor
    rows: Tensor
    rows_memory: Memory
    finite: bool


class Optimiser:
    """Applies a rule to a model's dense vector and to the table rows of a step.

    Construction moves every parameter of the model into one contiguous vector (`dense`, [P]), of which the
    parameters become views: a rule is then a handful of operations for the whole net. Do not replace
    `parameter.data` afterwards. `table_steps` [R] counts the steps that touched each row; a row with 0 still
    has its first value.
    """

    def __init__(self, model: nn.Module, table: Tensor, config: ModelConfig) -> None:
        self.rule = RULES[config.optimiser]
        self.config = config
        self.table = table
        self.dense = flatten(model)
        self.dense_memory = self.rule.start(self.dense)
        self.dense_steps = torch.zeros(1, device=table.device)
        self.table_memory = self.rule.start(table)
        self.table_steps = torch.zeros(len(table), 1, device=table.device)

    @torch.no_grad()
    def propose(self, loss: Tensor, gradients: tuple[Tensor, ...], index: Tensor, rows: Tensor) -> Proposal:
        """Clips the gradient (dense ones in parameter order, then that of `rows`) and computes the step's new
        values.

        `finite` is False if the loss, the gradient or any new value is not finite; such a proposal must be
        dropped.
        """
        dense_gradient = torch.cat([gradient.flatten() for gradient in gradients[:-1]])
        row_gradient = gradients[-1]
        norm = torch.sqrt(dense_gradient.square().sum() + row_gradient.square().sum())
        shrink = torch.clamp_max(self.config.clip_norm / (norm + 1e-12), 1.0)
        dense, dense_memory = self._moved(
            self.dense, dense_gradient.mul_(shrink), self.dense_memory, self.dense_steps + 1.0
        )
        memory = tuple(part.index_select(0, index) for part in self.table_memory)
        moved, rows_memory = self._moved(
            rows, row_gradient.mul_(shrink), memory, self.table_steps.index_select(0, index) + 1.0
        )
        # One number that is finite only if all of them are: one wait for the device instead of four.
        finite = bool(torch.isfinite(loss + norm + dense.sum() * 0.0 + moved.sum() * 0.0))
        return Proposal(dense, dense_memory, index, moved, rows_memory, finite)

    def _moved(
        self, values: Tensor, gradient: Tensor, memory: Memory, steps: Tensor
    ) -> tuple[Tensor, Memory]:
        direction, memory = self.rule.update(gradient, memory, steps)
        kept = values * (1.0 - self.config.learning_rate * self.config.weight_decay)
        return kept.sub_(direction, alpha=self.config.learning_rate), memory

    @torch.no_grad()
    def accept(self, step: Proposal) -> None:
        """Writes a finite proposal: the dense vector in place, the table only at the touched rows."""
        self.dense.copy_(step.dense)
        self.dense_memory = step.dense_memory
        self.dense_steps = self.dense_steps + 1.0
        self.table.index_copy_(0, step.index, step.rows)
        for memory, rows in zip(self.table_memory, step.rows_memory, strict=True):
            memory.index_copy_(0, step.index, rows)
        self.table_steps.index_add_(0, step.index, torch.ones_like(self.table_steps[: len(step.index)]))


@torch.no_grad()
def flatten(model: nn.Module) -> Tensor:
    """One vector [P] of all parameters in their order; the parameters become views of it."""
    parameters = list(model.parameters())
    vector = torch.cat([parameter.data.flatten() for parameter in parameters])
    start = 0
    for parameter in parameters:
        stop = start + parameter.numel()
        parameter.data = vector[start:stop].view_as(parameter)
        start = stop
    return vector

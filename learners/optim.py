"""Update rules, written once for two kinds of weights: the dense vector of a model, and the table rows of one
step.

A rule is a pure function: it gets values, gradients and its memory of exactly the weights that the step
touches, and gives new values and new memory. Nothing is written before the whole step has been found finite,
and a step costs what it touches, never the size of the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from learners.batch import ModelConfig

# Memory is a tuple of tensors, one for each name in `Rule.memory`.
Memory = tuple[Tensor, ...]
Body = Callable[..., tuple[Tensor, ...]]
Runner = Callable[..., tuple[Tensor, ...]]  # runs a body, its first argument, on the others


@dataclass(frozen=True, slots=True)
class Touch:
    """What a rule gets: `values` and their `gradient`, [P] of the net or [u, width] of table rows; what is
    remembered of them; and the step's learning `rate`, a scalar: a tensor, so that a captured step can follow it.

    `steps` counts the steps that touched them, this one too: a [1] tensor for the dense vector, [u, 1] for
    rows, so that a row seen for the first time gets its own bias correction.
    """

    values: Tensor
    gradient: Tensor
    memory: Memory
    steps: Tensor
    rate: Tensor

    def moved(self, direction: Tensor, *memory: Tensor) -> tuple[Tensor, Memory]:
        """The values, `rate` times against the direction, and what to remember."""
        return self.values - self.rate * direction, memory


@dataclass(frozen=True)
class Rule:
    """An optimiser: the names of what it remembers for each weight, and `update`, which gives new values and
    the new memory.

    `decay` says what `weight_decay` does: it is added to the "gradient" (L2, as in torch.optim), or it shrinks
    the "weights" by themselves. With `rowwise` a table row has one number of memory instead of one a column.
    """

    memory: tuple[str, ...]
    update: Callable[[Touch], tuple[Tensor, Memory]]
    decay: str = "gradient"
    rowwise: bool = False

    def start(self, values: Tensor) -> Memory:
        """The memory of weights [P] or [R, width] that no step has touched."""
        shape = (len(values), 1) if self.rowwise and values.ndim == 2 else values.shape
        return tuple(values.new_zeros(shape) for _ in self.memory)

    def step(self, touch: Touch, weight_decay: float) -> tuple[Tensor, Memory]:
        """`update` with the decay."""
        if weight_decay and self.decay == "gradient":
            touch = replace(touch, gradient=touch.gradient.add(touch.values, alpha=weight_decay))
        elif weight_decay:
            touch = replace(touch, values=touch.values * (1.0 - touch.rate * weight_decay))
        return self.update(touch)


def sgd(touch: Touch) -> tuple[Tensor, Memory]:
    """Plain gradient descent; no memory."""
    return touch.moved(touch.gradient)


def momentum(touch: Touch, share: float, nesterov: bool) -> tuple[Tensor, Memory]:
    """Polyak 1964; with `nesterov` Sutskever et al. 2013. A row that is not touched keeps its velocity."""
    velocity = touch.gradient.add(touch.memory[0], alpha=share)
    return touch.moved(touch.gradient.add(velocity, alpha=share) if nesterov else velocity, velocity)


def adagrad(touch: Touch) -> tuple[Tensor, Memory]:
    """Duchi, Hazan & Singer 2011. Remembers the sum of squared gradients."""
    total = torch.addcmul(touch.memory[0], touch.gradient, touch.gradient)
    return touch.moved(touch.gradient / (total.sqrt() + 1e-10), total)


def rowwise_adagrad(touch: Touch) -> tuple[Tensor, Memory]:
    """Adagrad with one sum for a table row: that of its mean squared gradient (as in Naumov et al. 2019)."""
    if touch.values.ndim == 1:
        return adagrad(touch)
    total = touch.memory[0] + touch.gradient.square().mean(1, keepdim=True)
    return touch.moved(touch.gradient / (total.sqrt() + 1e-10), total)


def rmsprop(touch: Touch) -> tuple[Tensor, Memory]:
    """Tieleman & Hinton 2012. Remembers a running mean of squared gradients."""
    squares = torch.addcmul(touch.memory[0] * 0.99, touch.gradient, touch.gradient, value=0.01)
    return touch.moved(touch.gradient / (squares.sqrt() + 1e-8), squares)


def adam(touch: Touch) -> tuple[Tensor, Memory]:
    """Kingma & Ba 2015; on rows it is the lazy form: an untouched row keeps its moments and its own step
    count. With decay of the weights it is AdamW (Loshchilov & Hutter 2019).
    """
    first = torch.lerp(touch.memory[0], touch.gradient, 0.1)
    second = torch.addcmul(touch.memory[1] * 0.999, touch.gradient, touch.gradient, value=0.001)
    scale = torch.sqrt(1.0 - 0.999**touch.steps) / (1.0 - 0.9**touch.steps)
    return touch.moved(first * scale / (second.sqrt() + 1e-8), first, second)


def ftrl(touch: Touch, rate: float, l1: float, l2: float) -> tuple[Tensor, Memory]:
    """FTRL-proximal (McMahan et al. 2013, algorithm 1, with β = 1): weights with little to say are exactly 0.

    There every weight starts at 0. One that does not (a net's) starts at the z that stands for it, or the
    first step would wipe it out. Each weight has a rate of its own that falls by itself, so `touch.rate`, which
    follows a schedule, is not used: a step at another rate would move weights that have no gradient.
    """
    sums, squares = touch.memory
    rest = 1.0 / rate + l2
    first = -touch.values * rest - torch.sign(touch.values) * l1
    sums = torch.where(touch.steps == 1.0, first, sums)
    total = torch.addcmul(squares, touch.gradient, touch.gradient)
    root = total.sqrt()
    sums = sums + touch.gradient - (root - squares.sqrt()) / rate * touch.values
    pull = torch.sign(sums) * torch.clamp_min(sums.abs() - l1, 0.0)
    return -pull / (root / rate + rest), (sums, total)


def rule_of(config: ModelConfig) -> Rule:
    """The rule that the settings ask for."""
    match config.optimiser:
        case "sgd" if config.momentum:
            return Rule(("velocity",), partial(momentum, share=config.momentum, nesterov=config.nesterov))
        case "ftrl":
            return Rule(
                ("sums", "squares"), partial(ftrl, rate=config.learning_rate, l1=config.l1, l2=config.l2)
            )
    return RULES[config.optimiser]


RULES = {
    "sgd": Rule((), sgd),
    "adagrad": Rule(("squares",), adagrad),
    "rowwise_adagrad": Rule(("squares",), rowwise_adagrad, rowwise=True),
    "rmsprop": Rule(("squares",), rmsprop),
    "adam": Rule(("first", "second"), adam),
    "adamw": Rule(("first", "second"), adam, decay="weights"),
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


def directly(body: Body, *given: Tensor) -> tuple[Tensor, ...]:
    """The runner that calls the body."""
    return body(*given)


class Optimiser:
    """Applies a rule to a model's dense vector and to the table rows of a step.

    Construction moves every parameter of the model into one contiguous vector (`dense`, [P]), of which the
    parameters become views: a rule is then a handful of operations for the whole net. Do not replace
    `parameter.data` afterwards. `table_steps` [R] counts the steps that touched each row; a row with 0 still
    has its first value.
    """

    def __init__(self, model: nn.Module, table: Tensor, config: ModelConfig) -> None:
        self.rule = rule_of(config)
        self.config = config
        self.table = table
        self.dense = flatten(model)
        self.dense_memory = self.rule.start(self.dense)
        self.dense_steps = torch.zeros(1, device=table.device)
        self.table_memory = self.rule.start(table)
        self.table_steps = table.new_zeros((len(table), 1))
        self.runner: Runner = directly

    @torch.no_grad()
    def propose(
        self, loss: Tensor, gradients: tuple[Tensor, ...], index: Tensor, rows: Tensor, share: float = 1.0
    ) -> Proposal:
        """Clips the gradient (dense ones in parameter order, then that of `rows`) and computes the step's new
        values, at `share` of the learning rate.

        `finite` is False if the loss, the gradient or any new value is not finite; such a proposal must be
        dropped.
        """
        dense_gradient = torch.cat([gradient.flatten() for gradient in gradients[:-1]])
        row_gradient = gradients[-1]
        rate = torch.full((), self.config.learning_rate * share, device=index.device)
        squares = row_gradient.square().sum()
        norm, shrink, dense, *dense_memory = self.runner(self.move_dense, dense_gradient, squares, rate)
        row_steps = self.table_steps.index_select(0, index) + 1.0
        memory = tuple(part.index_select(0, index) for part in self.table_memory)
        touch = Touch(rows, row_gradient.mul_(shrink), memory, row_steps, rate)
        moved, rows_memory = self.rule.step(touch, self.config.weight_decay)
        # One number that is finite only if all of them are: one wait for the device instead of four.
        finite = bool(torch.isfinite(loss + norm + dense.sum() * 0.0 + moved.sum() * 0.0))
        return Proposal(dense, tuple(dense_memory), index, moved, rows_memory, finite)

    def move_dense(self, gradient: Tensor, squares: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        """Norm of the whole gradient, what to multiply it by, the new dense vector [P] and its memory.

        `gradient` [P] is the dense part, `squares` the sum of the squares of the rest. Nothing is written.
        """
        norm = torch.sqrt(gradient.square().sum() + squares)
        shrink = torch.clamp_max(self.config.clip_norm / (norm + 1e-12), 1.0)
        touch = Touch(self.dense, gradient * shrink, self.dense_memory, self.dense_steps + 1.0, rate)
        dense, memory = self.rule.step(touch, self.config.weight_decay)
        return norm, shrink, dense, *memory

    @torch.no_grad()
    def accept(self, step: Proposal) -> None:
        """Writes a finite proposal, all of it in place, the table only at the touched rows."""
        for kept, fresh in zip(
            (self.dense, *self.dense_memory), (step.dense, *step.dense_memory), strict=True
        ):
            kept.copy_(fresh)
        self.dense_steps.add_(1.0)
        self.table.index_copy_(0, step.index, step.rows)
        for memory, rows in zip(self.table_memory, step.rows_memory, strict=True):
            memory.index_copy_(0, step.index, rows)
        self.table_steps.index_add_(0, step.index, torch.ones(len(step.index), 1, device=step.index.device))


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

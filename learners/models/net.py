"""What the families that learn by gradients share: layers, the logit, the loss, and the first table rows."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learners.batch import ModelConfig, Schema
from learners.blocks import EMBEDDED
from learners.losses import loss_of
from learners.models.base import LARGEST_LOGIT, EventModel, shares_of

LARGEST_FIRST_WEIGHT = (
    0.05  # table rows start uniform in ± this, except their first column (the linear weight): 0
)
LARGEST_OUTPUT = 1_000.0  # standard deviations: a value is always finite
_NO_ROWS = torch.zeros(0, dtype=torch.int64)
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class Net(EventModel):
    """logit = base rate + head(scaled numbers, one table row a field); the probability is its sigmoid.

    Where values are predicted, head says how many standard deviations of the labels from their mean. So what it has
    to learn is of a size that steps are made for, whatever the label's unit, and follows a stream whose level moves.

    A field is a category or a block of ids, of which the head sees the mean over its places. A family gives `head`
    and the table's width, and creates its layers by `linear`.
    """

    embedded = EMBEDDED

    def __init__(self, schema: Schema, config: ModelConfig, seed: int, width: int) -> None:
        rows = np.arange(len(schema.fields) * config.rows)
        self.outputs = schema.target.width  # of head
        super().__init__(schema, config, first_rows(seed, rows, width, self.outputs))
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.loss = loss_of(config, schema.target)
        self.blocks = [block for block in schema.blocks if block.embedded]
        if config.table == "exact":
            from learners.models.vocabulary import Vocabulary  # only who has one waits for the compiler

            self.vocabulary = Vocabulary(config, (self.offsets // config.rows).numpy())

    def linear(self, inputs: int, outputs: int, *, zero: bool = False) -> "Linear":
        """A linear layer that starts from this model's own seed; the global generator is left alone."""
        weight = torch.zeros(outputs, inputs)
        if not zero and inputs:
            bound = (3.0 / inputs) ** 0.5  # unit variance in, unit variance out
            weight.uniform_(-bound, bound, generator=self.generator)
        return Linear(weight)

    def scores(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """See the base class."""
        if self.values:
            said = self.logits(numbers, rows).clamp_(-LARGEST_OUTPUT, LARGEST_OUTPUT)
            return self.label_mean + self.unit * said
        if self.schema.target.classes:
            return shares_of(self.logits(numbers, rows))
        return torch.sigmoid(self.logits(numbers, rows).clamp_(-LARGEST_LOGIT, LARGEST_LOGIT))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Logits [n] of raw numbers [n, N] and the int64 matrix [n, I]."""
        extra = self.extra(categories)
        inputs = numbers if extra is None else torch.cat((numbers, extra), 1)
        return self.logits(inputs, nn.functional.embedding(self.index(categories), self.table))

    def extra(self, ids: Tensor) -> Tensor | None:
        """1 for each place of a block of ids that is filled, else 0: [n, F - C]."""
        if not self.blocks:
            return None
        return (ids[:, len(self.schema.categories) : len(self.offsets)] != 0).float()

    def logits(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """Logits [n] of `inputs` [n, N + extra] and gathered table rows [n, F, width]."""
        return self.said(numbers, rows).float() + self.base_rate()

    def said(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """`head` of the same as `logits`."""
        return self.head(self.scale(numbers), self.fields(numbers, rows))

    def fields(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """A table row for each field, [n, fields, width]: a block's is the mean over its filled places, or 0."""
        if not self.blocks:
            return rows
        at = len(self.schema.categories)
        means = [rows[:, :at]]
        for block in self.blocks:
            filled = self.filled(numbers, at, block.length)
            total = torch.bmm(filled[:, None], rows[:, at : at + block.length])
            means.append(total / filled.sum(1).clamp_min(1.0)[:, None, None])
            at += block.length
        return torch.cat(means, 1)

    def filled(self, numbers: Tensor, at: int, length: int) -> Tensor:
        """The mask [n, length] of the `length` ids that begin with number `at` of all that are looked up."""
        start = len(self.mean) + at - len(self.schema.categories)
        return numbers[:, start : start + length]

    @torch.no_grad()
    def meet(self, ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Lets the vocabulary know that ids [n, I] were learned: rows that now stand for ids, and those that are free.

        A row starts as what all ids without a row have learned together; a free one has its first value.
        """
        if self.vocabulary is None:
            return _NO_ROWS, _NO_ROWS
        admitted, evicted = self.vocabulary.note(ids[:, : len(self.offsets)])
        if len(evicted):
            self.table[evicted] = self._first(evicted)
        if len(admitted):
            self.table[admitted] = self.table[self.vocabulary.rare(admitted)]
        return torch.from_numpy(admitted), torch.from_numpy(evicted)

    def _first(self, rows: NDArray[np.int64]) -> Tensor:
        return first_rows(self.seed, rows, self.table.shape[1], self.outputs).to(self.table.device)

    def flat(self, output: Tensor) -> Tensor:
        """What a layer of `outputs` units gave, as logits [n] or [n, K]."""
        return output.squeeze(1) if self.outputs == 1 else output

    def wide(self, rows: Tensor) -> Tensor:
        """The linear weights of table rows [n, fields, width], summed: [n] or [n, K]."""
        return rows[:, :, 0].sum(1) if self.outputs == 1 else rows[:, :, : self.outputs].sum(1)

    def base_rate(self) -> Tensor:
        """The logit of the share of positives among the first rows; log shares [K] of classes; 0 of values."""
        if self.values:
            return torch.zeros_like(self.label_mean)
        if self.schema.target.classes:
            return torch.log((self.seen + 1.0) / (self.seen.sum() + len(self.seen)))
        return torch.log((self.seen[1] + 1.0) / (self.seen[0] + 1.0))

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n] without the base rate, of scaled numbers [n, N] and table rows [n, fields, width]."""
        raise NotImplementedError

    def beside(self, scaled: Tensor) -> Tensor:
        """Scaled numbers [n, N] and, as further numbers, how far `recent` is from what is usual [n, N + E]."""
        if not len(self.recent):
            return scaled
        if self.values:
            return torch.cat((scaled, self.recent.expand(len(scaled), -1)), 1)
        rate = (self.seen[1] + 1.0) / (self.seen.sum() + 2.0)
        recent = (self.recent - rate) * torch.rsqrt(rate * (1.0 - rate))
        return torch.cat((scaled, recent.expand(len(scaled), -1)), 1)

    def objective(self, numbers: Tensor, rows: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
        """What a step makes smaller: the mean loss of rows [n] with weights [n] (None: all 1), a scalar."""
        return self.loss(self.logits(numbers, rows), self.scaled(label), weight)


class Linear(nn.Module):
    """Wx + b. torch's own draws from the global generator, and warns about a layer without inputs."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Values [n, outputs] of inputs [n, inputs]."""
        return nn.functional.linear(inputs, self.weight, self.bias)


def deep_net(model: Net, inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear and activation for each width; without widths the input passes through."""
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *hidden), hidden, strict=False):
        layers += [model.linear(before, after), ACTIVATIONS[model.config.activation]()]
    return nn.Sequential(*layers)


def uniform_cells(seed: int, cells: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Numbers [m] in [0, 1), each a pure function of the seed and its position in `cells` [m]."""
    from learners.models.uniform_kernels import fill_cells  # only who draws waits for the compiler

    unit = np.empty(len(cells), np.float32)
    fill_cells(unit, _salt(seed), cells)
    return unit


def first_rows(seed: int, rows: NDArray[np.int64], width: int, linear: int = 1) -> Tensor:
    """The table's `rows` [u, width] before any training: a pure function of seed, row and column.

    Therefore a checkpoint and a swap carry only the rows that were trained. The first `linear` columns are 0.
    """
    from learners.models.uniform_kernels import fill_rows

    table = np.empty((len(rows), width), np.float32)
    fill_rows(table, _salt(seed), rows, linear, np.float32(LARGEST_FIRST_WEIGHT))
    return torch.from_numpy(table)


def _salt(seed: int) -> np.uint64:
    return np.uint64(seed * 0xD1342543DE82EF95 % 2**64)

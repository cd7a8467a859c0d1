"""What every torch model shares: how numbers are scaled, how categories find their rows, and the base rate.

A model is `logit = base rate + head(scaled numbers, one table row a category)`. Only `head` differs between
families. The table is a buffer, not a parameter: a step touches a few hundred of its rows, so the trainer
gathers those rows, differentiates with respect to them, and writes them back. No gradient of the size of the
table ever exists.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infra.errors import UserError
from learners.batch import ModelConfig, Schema

SCALED_LIMIT = 6.0  # a scaled number is clipped to this many standard deviations
SCALER_ROWS = (
    50_000.0  # running mean and variance forget with this memory, so that they follow a drifting stream
)
SMALLEST_VARIANCE = 1e-4  # so that a column that was constant so far does not divide by zero
LARGEST_LOGIT = 15.0  # a score is never exactly 0 or 1: every log loss is finite (at most 15 nats)
BASE_RATE_ROWS = (
    5_000.0  # the base rate is a starting point from the first rows; afterwards only the head learns
)
LARGEST_FIRST_WEIGHT = (
    0.05  # table rows start uniform in ± this, except their first column (the linear weight): 0
)


class EventModel(nn.Module):
    """Base of the families. A family gives `head` and the table's width, and creates its layers by `linear`.

    Most callers want `predict`; `observe`, `index` and `logits` are the steps of training.

    Shapes: numbers float32 [n, N] raw values (NaN or infinite: unknown or clipped), categories int64 [n, C]
    (0: missing). State that changes only in training, by `observe`: `mean`, `var`, `count` [N] and `seen` [2]
    (negatives, positives).
    """

    table: Tensor
    offsets: Tensor
    mean: Tensor
    var: Tensor
    count: Tensor
    seen: Tensor

    def __init__(self, schema: Schema, config: ModelConfig, seed: int, width: int) -> None:
        super().__init__()
        if not schema.numbers and not schema.categories:
            raise UserError(
                "the model has no input", "give the task at least one number or category with model=true"
            )
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        numbers, fields = len(schema.numbers), len(schema.categories)
        self.register_buffer("table", first_rows(seed, fields * config.rows, width))
        self.register_buffer("offsets", torch.arange(fields) * config.rows, persistent=False)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("var", torch.ones(numbers))
        self.register_buffer("count", torch.zeros(numbers))
        self.register_buffer("seen", torch.zeros(2))

    def linear(self, inputs: int, outputs: int, *, zero: bool = False) -> "Linear":
        """A linear layer that starts from this model's own seed; the global generator is left alone."""
        weight = torch.zeros(outputs, inputs)
        if not zero and inputs:
            bound = (3.0 / inputs) ** 0.5  # unit variance in, unit variance out
            weight.uniform_(-bound, bound, generator=self.generator)
        return Linear(weight)

    def predict(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probabilities float32 [n] of the positive class; raises ValueError for other column counts."""
        self.check_columns(numbers, categories)
        with torch.inference_mode():
            logits = self(tensor(numbers, self.table.device), tensor(categories, self.table.device))
            probability = torch.sigmoid(logits.clamp_(-LARGEST_LOGIT, LARGEST_LOGIT))
            scores: NDArray[np.float32] = probability.cpu().numpy()
        return scores

    def check_columns(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> None:
        """Raises ValueError unless the shapes are [n, N] and [n, C]: broadcasting would hide a mistake."""
        expected = ((len(numbers), len(self.mean)), (len(numbers), len(self.offsets)))
        if (numbers.shape, categories.shape) != expected:
            raise ValueError(
                f"rows of shapes {numbers.shape} and {categories.shape}, the model wants {expected}"
            )

    def index(self, categories: Tensor) -> Tensor:
        """Table rows [n, C] of categories [n, C]: a field's row 0 is for missing, the rest are shared."""
        rows = self.config.rows
        if rows == 1:
            return self.offsets.expand(categories.shape)
        hashed = torch.remainder(categories, rows - 1) + 1
        return hashed.masked_fill_(categories == 0, 0) + self.offsets

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Logits float32 [n]."""
        return self.logits(numbers, nn.functional.embedding(self.index(categories), self.table))

    def logits(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """Logits [n] of raw numbers [n, N] and gathered table rows [n, C, width]."""
        base_rate = torch.log((self.seen[1] + 1.0) / (self.seen[0] + 1.0))
        return self.head(self.scale(numbers), rows) + base_rate

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n] without the base rate, of scaled numbers [n, N] and table rows [n, C, width]."""
        raise NotImplementedError

    def scale(self, numbers: Tensor) -> Tensor:
        """Signed log1p, standardised by the running mean and variance, clipped; unknown (NaN) becomes 0."""
        scaled = (compress(numbers) - self.mean) * torch.rsqrt(self.var + SMALLEST_VARIANCE)
        return torch.nan_to_num_(scaled, nan=0.0).clamp_(-SCALED_LIMIT, SCALED_LIMIT)

    @torch.no_grad()
    def observe(self, numbers: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Folds one micro-batch into the running statistics and returns the former ones, for `restore`.

        Source of the merge: Chan, Golub & LeVeque 1979. The count is capped, so that old rows fade.
        """
        former = (self.mean, self.var, self.count, self.seen)
        value = compress(numbers)
        known = torch.isfinite(value)
        value = torch.where(known, value, 0.0)
        fresh = known.sum(0, dtype=torch.float32)
        share = torch.clamp_min(fresh, 1.0)
        fresh_mean = value.sum(0) / share
        fresh_var = torch.where(known, value - fresh_mean, 0.0).square_().sum(0) / share
        total = self.count + fresh
        weight = fresh / torch.clamp_min(total, 1.0)
        gap = fresh_mean - self.mean
        self.mean = self.mean + gap * weight
        self.var = (1.0 - weight) * self.var + weight * fresh_var + weight * (1.0 - weight) * gap * gap
        self.count = torch.clamp_max(total, SCALER_ROWS)
        positives = label.sum()
        fresh_seen = torch.stack((len(label) - positives, positives))
        self.seen = torch.where(self.seen.sum() < BASE_RATE_ROWS, self.seen + fresh_seen, self.seen)
        return former

    def restore(self, former: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Takes back an `observe` (of a step that was dropped)."""
        self.mean, self.var, self.count, self.seen = former

    def statistics(self) -> dict[str, Tensor]:
        """The running statistics by name: the buffers that travel whole, as the parameters do."""
        return {"mean": self.mean, "var": self.var, "count": self.count, "seen": self.seen}


class Linear(nn.Module):
    """Wx + b. torch's own draws from the global generator, and warns about a layer without inputs."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Values [n, outputs] of inputs [n, inputs]."""
        return nn.functional.linear(inputs, self.weight, self.bias)


def tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor on `device`; shares memory with the array where it can. Copies read-only ones (Arrow's)."""
    shared = array if array.flags.writeable else array.copy()
    return torch.from_numpy(shared).to(device)


def compress(numbers: Tensor) -> Tensor:
    """Signed log1p: tames heavy tails of amounts and counts, keeps sign and zero."""
    return torch.copysign(torch.log1p(numbers.abs()), numbers)


def first_rows(seed: int, rows: int, width: int) -> Tensor:
    """The table [rows, width] before any training: a pure function of seed, row and column.

    It is an integer hash (splitmix64, Steele, Lea & Flood 2014), not a random generator, so that it is the
    same on every machine and with every version of torch. Therefore a checkpoint and a swap carry only the
    rows that were trained.
    """
    with np.errstate(over="ignore"):
        cell = np.arange(rows * width, dtype=np.uint64)
        bits = cell * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    unit = (bits >> np.uint64(40)).astype(np.float32) * np.float32(
        2.0**-24
    )  # 24 bits: exact in float32, in [0, 1)
    table = ((unit * 2.0 - 1.0) * np.float32(LARGEST_FIRST_WEIGHT)).reshape(rows, width)
    table[:, 0] = 0.0
    return torch.from_numpy(table)

"""What every family shares: how numbers are scaled, how categories find their rows, and the base rate.

A model turns a row into a probability from its scaled numbers and one table row a category. Only that step
differs between families. The table is a buffer, not a parameter: a step touches a few hundred of its rows, so
the trainer gathers those rows and writes them back. Nothing of the size of the table is ever computed.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infra.errors import UserError
from learners.batch import ModelConfig, Schema

if TYPE_CHECKING:
    from learners.models.vocabulary import Vocabulary

SCALED_LIMIT = 6.0  # a scaled number is clipped to this many standard deviations
SCALER_ROWS = (
    50_000.0  # running mean and variance forget with this memory, so that they follow a drifting stream
)
SMALLEST_VARIANCE = 1e-4
# A column that was constant so far is not divided by zero, nor are the rounding errors of its mean blown up. No larger:
# a share of some thousandths is information too.
LEAST_SPREAD, LEAST_SHARE = 1e-6, 1e-4
LARGEST_LOGIT = 15.0  # a score is never exactly 0 or 1: every log loss is finite (at most 15 nats)
BASE_RATE_ROWS = (
    5_000.0  # the base rate is a starting point from the first rows; afterwards only the head learns
)

LABEL_ROWS = 1_000.0  # mean and variance of labels that are values forget with this memory: a level may jump

Former = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class EventModel(nn.Module):
    """Base of the families, which are of two kinds: `Net` learns by gradients, `Counter` by counting.

    Most callers want `predict`; `observe` and `index` are steps of training.

    Shapes: numbers float32 [n, N] raw values (NaN or infinite: unknown or clipped), categories int64 [n, I] (0:
    missing), of which the first C are categories and the rest those of blocks. A step sees what `inputs` makes of
    them: the numbers with `extra` columns behind them, and a table row for each of the F ids that the family looks
    up. State that changes only in training: by `observe` `mean`, `var`, `count` [N] and `seen` [2] (negatives,
    positives; or [K], each class), by `remember` `recent` [E], the share of positives among the labels learned of
    late, one for each half-life of `config.recent_labels`. Where values are predicted, `seen` [1] is the weight of
    the labels, `label_mean` and `label_var` [1] are those of the labels, and `recent` is of scaled ones.
    """

    embedded: ClassVar[tuple[str, ...]] = ()
    """Kinds of blocks whose ids the family looks up in its table."""

    vocabulary: "Vocabulary | None" = None
    """Which id has which row, where that is not by their hash."""

    table: Tensor
    offsets: Tensor
    mean: Tensor
    var: Tensor
    count: Tensor
    seen: Tensor
    label_mean: Tensor
    label_var: Tensor
    recent: Tensor
    fade: Tensor

    def __init__(self, schema: Schema, config: ModelConfig, table: Tensor) -> None:
        super().__init__()
        if not schema.numbers and not schema.ids:
            raise UserError(
                "the model has no input", "give the task at least one number or category with model=true"
            )
        self.config, self.schema = config, schema
        numbers = len(schema.numbers)
        widths = [1] * len(schema.categories)
        widths += [block.length for block in schema.blocks if block.kind in self.embedded]
        fields = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths, dtype=torch.int64))
        self.register_buffer("table", table)
        self.register_buffer("offsets", fields * config.rows, persistent=False)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("var", torch.ones(numbers))
        self.register_buffer("count", torch.zeros(numbers))
        self.values = schema.target.is_value
        self.register_buffer("seen", torch.zeros(1 if self.values else max(2, schema.target.width)))
        self.register_buffer("label_mean", torch.zeros(1))
        self.register_buffer("label_var", torch.ones(1))
        half_lives = torch.tensor(config.recent_labels, dtype=torch.float32)
        self.register_buffer("recent", torch.full((len(half_lives),), 0.0 if self.values else 0.5))
        self.register_buffer("fade", 1.0 - 0.5 ** (1.0 / half_lives), persistent=False)

    def predict(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores float32 [n] or [n, K] (`Target`); ValueError for other column counts."""
        with torch.inference_mode():
            inputs, index = self.inputs(numbers, categories)
            found = self.scores(inputs, nn.functional.embedding(index, self.table))
            scores: NDArray[np.float32] = found.cpu().numpy()
        return scores

    def inputs(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """What a step works on: numbers [n, N + extra], and the table rows int64 [n, F] of the ids.

        Raises ValueError for other column counts.
        """
        self.check_columns(numbers, categories)
        inputs, ids = tensor(numbers, self.table.device), tensor(categories, self.table.device)
        extra = self.extra(ids)
        return inputs if extra is None else torch.cat((inputs, extra), 1), self.index(ids)

    def extra(self, ids: Tensor) -> Tensor | None:
        """Further inputs float32 [n, …] that the family makes of the int64 matrix [n, I]; None for none."""
        return None

    def check_columns(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> None:
        """Raises ValueError unless the shapes are [n, N] and [n, I]: broadcasting would hide a mistake."""
        expected = ((len(numbers), len(self.mean)), (len(numbers), self.schema.ids))
        if (numbers.shape, categories.shape) != expected:
            raise ValueError(
                f"rows of shapes {numbers.shape} and {categories.shape}, the model wants {expected}"
            )

    def index(self, categories: Tensor) -> Tensor:
        """Table rows [n, F] of the int64 matrix [n, I]: a field's row 0 is for missing, the rest are shared.

        With a vocabulary, row 1 is for all ids that have none of their own.
        """
        rows = self.config.rows
        categories = categories[:, : len(self.offsets)]  # images, which have no rows, come last
        if self.vocabulary is not None:
            return torch.from_numpy(self.vocabulary.rows(categories.cpu().numpy())).to(self.table.device)
        if rows == 1:
            return self.offsets.expand(categories.shape)
        hashed = torch.remainder(categories, rows - 1) + 1
        return hashed.masked_fill_(categories == 0, 0) + self.offsets

    def scores(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """Scores [n] or [n, K] of `inputs` [n, N + extra] and gathered table rows [n, F, width]."""
        raise NotImplementedError

    def scale(self, numbers: Tensor) -> Tensor:
        """Signed log1p of the first N columns, standardised by running mean and variance, clipped; NaN becomes 0."""
        scaled = (compress(numbers[:, : len(self.mean)]) - self.mean) * torch.rsqrt(self.spread())
        return torch.nan_to_num_(scaled, nan=0.0).clamp_(-SCALED_LIMIT, SCALED_LIMIT)

    def spread(self) -> Tensor:
        """The variance [N] that numbers are scaled by, above 0."""
        return self.var + (LEAST_SHARE * self.mean).square() + LEAST_SPREAD**2

    @torch.no_grad()
    def observe(self, numbers: Tensor, label: Tensor, weight: Tensor | None = None) -> Former:
        """Folds one micro-batch into the running statistics and returns the former ones, for `restore`.

        The count is capped, so that old rows fade. Weights [n] count for the labels only: the numbers of a row
        are what they are.
        """
        former = self._running()
        value = compress(numbers[:, : len(self.mean)])
        self.mean, self.var, total = merged(self.mean, self.var, self.count, value, torch.isfinite(value))
        self.count = torch.clamp_max(total, SCALER_ROWS)
        if self.values:
            known = torch.ones_like(label, dtype=torch.bool)[:, None]
            stood = (self.label_mean, self.label_var, self.seen)
            self.label_mean, self.label_var, total = merged(*stood, label[:, None], known, weight)
            self.seen = torch.clamp_max(total, LABEL_ROWS)
            return former
        if self.schema.target.classes:
            # Not one_hot, which looks at the values first: a captured step cannot.
            hot = (label[:, None] == torch.arange(self.schema.target.width, device=label.device)).to(
                label.dtype
            )
            self.seen = self.counted(hot.sum(0) if weight is None else weight @ hot)
            return former
        if weight is None:
            positives = label.sum()
            fresh = torch.stack((len(label) - positives, positives))
        else:
            fresh = torch.stack((weight @ (1.0 - label), weight @ label))
        self.seen = self.counted(fresh)
        return former

    def counted(self, fresh: Tensor) -> Tensor:
        """`seen` after `fresh` [2] further negatives and positives, or [K] of each class."""
        return torch.where(self.seen.sum() < BASE_RATE_ROWS, self.seen + fresh, self.seen)

    @torch.no_grad()
    def remember(self, label: Tensor) -> None:
        """Folds labels [n] in their order into `recent`: after their step was accepted, which must not see them."""
        if len(self.recent):
            label = self.scaled(label)
            age = torch.arange(len(label) - 1, -1, -1, device=label.device)[:, None]
            keep = 1.0 - self.fade
            fresh = keep ** len(label) * self.recent + (label[:, None] * self.fade * keep**age).sum(0)
            self.recent.copy_(fresh)

    def restore(self, former: Former) -> Former:
        """Takes back an `observe`, and returns what it had made of the statistics, for `settle`."""
        fresh = self._running()
        self.mean, self.var, self.count, self.seen, self.label_mean, self.label_var = former
        return fresh

    @torch.no_grad()
    def settle(self, fresh: Former) -> None:
        """Statistics that `restore` returned are right after all. In place: captured steps read them where they are."""
        for kept, value in zip(self._running(), fresh, strict=True):
            if value is not kept:
                kept.copy_(value)

    def _running(self) -> Former:
        return self.mean, self.var, self.count, self.seen, self.label_mean, self.label_var

    def learnable(self, label: Tensor) -> bool:
        """Whether labels [n] can stand in a step at all; what else is wrong with them shows in the loss."""
        classes = len(self.schema.target.classes)
        return not classes or bool(((label >= 0) & (label < classes) & (label == label.floor())).all())

    @property
    def unit(self) -> Tensor:
        """What a score is measured in, [1]: the standard deviation of the labels where values are predicted, else 1."""
        if not self.values:
            return torch.ones_like(self.label_var)
        return torch.sqrt(self.label_var + (LEAST_SHARE * self.label_mean).square() + LEAST_SPREAD**2)

    def scaled(self, label: Tensor) -> Tensor:
        """Labels [n] as a net learns them: values as standard deviations from their mean, others as they are."""
        return (label - self.label_mean) / self.unit if self.values else label

    def statistics(self) -> dict[str, Tensor]:
        """The running statistics by name: the buffers that travel whole, as the parameters do."""
        named = {"mean": self.mean, "var": self.var, "count": self.count, "seen": self.seen}
        named |= {"label_mean": self.label_mean, "label_var": self.label_var} if self.values else {}
        return named | ({"recent": self.recent} if len(self.recent) else {})

    def problem(self, tensors: dict[str, Tensor]) -> str | None:
        """What else is wrong with statistics and rows of the right shapes, all finite; None if nothing is."""
        for name in ("var", "count", "seen", *(["label_var"] if self.values else [])):
            if bool((tensors[name] < 0).any()):
                return f"{name} holds a negative number"
        return None


def merged(
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    value: Tensor,
    known: Tensor,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count [N] of what they stood for and of the `known` ones of `value` [n, N] together.

    Rows count with their `weight` [n], if there are any. Source: Chan, Golub & LeVeque 1979.
    """
    value = torch.where(known, value, 0.0)
    if weight is None:
        fresh = known.sum(0, dtype=torch.float32)
        fresh_mean = value.sum(0) / torch.clamp_min(fresh, 1.0)
        squares = torch.where(known, value - fresh_mean, 0.0).square_().sum(0)
    else:
        fresh = weight @ known.to(torch.float32)
        fresh_mean = weight @ value / torch.where(fresh > 0.0, fresh, 1.0)
        squares = weight @ torch.where(known, value - fresh_mean, 0.0).square_()
    fresh_var = squares / torch.where(fresh > 0.0, fresh, 1.0)
    total = count + fresh
    share = fresh / torch.where(total > 0.0, total, 1.0)
    gap = fresh_mean - mean
    var = (1.0 - share) * var + share * fresh_var + share * (1.0 - share) * gap * gap
    return mean + gap * share, var, total


def shares_of(logits: Tensor) -> Tensor:
    """Softmax of logits [n, K]: probabilities, none of them 0."""
    below = logits - logits.amax(1, keepdim=True)
    return torch.softmax(below.clamp_min_(-LARGEST_LOGIT), 1)


def tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor on `device`; shares memory with the array where it can. Copies read-only ones (Arrow's).

    To a GPU it goes from pinned memory, beside what the GPU computes; what it computes next waits for it.
    """
    shared = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type != "cuda":
        return shared.to(device)
    return shared.pin_memory().to(device, non_blocking=True)


def compress(numbers: Tensor) -> Tensor:
    """Signed log1p: tames heavy tails of amounts and counts, keeps sign and zero."""
    return torch.copysign(torch.log1p(numbers.abs()), numbers)

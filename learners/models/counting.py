"""Families that learn without gradients: they count, remember or split. Naive Bayes and nearest neighbours.

Their table has a column for each class, the rows of it that were seen with a category value. From these follows the
value's log-odds, or of several classes how much likelier each is with it, counted before the row's own label is
(Prokhorenkova et al. 2018): so a category of any size is one number (or K) for a neighbour's distance or a tree's
split, and a row never sees its own answer. Where labels are values, a row of the table has the weight of a category's
labels and their mean, in standard deviations from what was usual when they came; the category is then that mean.
"""

import torch
from torch import Tensor

from learners.batch import ModelConfig, Schema
from learners.models.base import (
    SCALED_LIMIT,
    SCALER_ROWS,
    SMALLEST_VARIANCE,
    EventModel,
    compress,
    merged,
    shares_of,
)

CATEGORY_ROWS = 2_000.0  # rows that a category value remembers: older ones fade
CLASS_ROWS = 20_000.0  # rows that the base rate remembers
PRIOR_ROWS = 4.0  # rows of the base rate that a value is thought to have had before its first one
FIRST_ROWS = 5.0  # rows of the common variance that each class is thought to have had


class Counter(EventModel):
    """Base of the families without gradients: `learn` instead of a loss and an optimiser. Always on the CPU.

    A family gives `score`, `fold` and what they keep: `statistics`, which travel whole with every update, and
    `memory`, which only learning needs.
    """

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        width = max(2, schema.target.width)
        super().__init__(schema, config, torch.zeros(len(schema.categories) * config.rows, width))
        self.seed = seed
        self.columns = len(schema.numbers) + len(schema.categories) * schema.target.width

    def scores(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """See the base class."""
        found = self.score(numbers, self.encode(rows))
        return found[:, 1] if self.schema.target.kind == "binary" else found

    def score(self, numbers: Tensor, encoded: Tensor) -> Tensor:
        """Values [n], or probabilities [n, K] (of a binary task [n, 2]), of numbers [n, N] and encoded categories."""
        raise NotImplementedError

    def fold(self, numbers: Tensor, encoded: Tensor, label: Tensor, weight: Tensor | None) -> None:
        """Learn raw numbers [n, N], categories as encoded and labels [n], in this order.

        Rows count with their weights [n]; None: all 1.
        """
        raise NotImplementedError

    def memory(self) -> dict[str, Tensor]:
        """What learning needs besides the weights, by name: references, of any type."""
        return {}

    @torch.no_grad()
    def learn(
        self, numbers: Tensor, index: Tensor, label: Tensor, weight: Tensor | None = None
    ) -> Tensor | None:
        """Learn a step of raw numbers [n, N], table rows [n, C], labels [n] and weights [n] (None: all 1).

        The table rows it touched; None, and nothing has changed, if a label is none of the target's or a weight not
        above 0. A number is counted where it is finite.
        """
        if not self.schema.target.usable(label.numpy()).all():
            return None
        if weight is not None and not bool((torch.isfinite(weight) & (weight > 0.0)).all()):
            return None
        encoded = self.encode(self.table[index])
        self.observe(numbers, label, weight)
        self.fold(numbers, encoded, label, weight)
        votes = torch.ones_like(label) if weight is None else weight
        unique: tuple[Tensor, Tensor] = torch.unique(index, return_inverse=True)
        touched, places = unique[0], unique[1].flatten()
        label, votes = (each.repeat_interleave(index.shape[1]) for each in (label, votes))
        of_rows = self._averaged if self.values else self._recounted
        self.table[touched] = of_rows(self.table[touched], places, label, votes)
        return touched

    def _recounted(self, counts: Tensor, places: Tensor, label: Tensor, votes: Tensor) -> Tensor:
        """Counts [u, K] of table rows after labels [m] with votes [m] at `places` int64 [m] among them."""
        cells = places * counts.shape[1] + label.long()
        counts = counts + torch.zeros(counts.numel()).index_add_(0, cells, votes).view_as(counts)
        return counts * (CATEGORY_ROWS / counts.sum(1, keepdim=True)).clamp_max_(1.0)

    def _averaged(self, rows: Tensor, places: Tensor, label: Tensor, votes: Tensor) -> Tensor:
        """The same of weights and means [u, 2], for labels that are values."""
        weight, mean = rows.unbind(1)
        gap = self.scaled(label).clamp(-SCALED_LIMIT, SCALED_LIMIT) - mean[places]
        weight = weight.index_add(0, places, votes)
        mean = mean + torch.zeros_like(mean).index_add_(0, places, gap * votes) / weight
        return torch.stack((weight.clamp_max(CATEGORY_ROWS), mean), 1)

    def counted(self, fresh: Tensor) -> Tensor:
        """`seen` after `fresh` [K] further rows of each class. It goes on: there is no head to correct it."""
        total = self.seen + fresh
        return total * (CLASS_ROWS / total.sum().clamp_min(1.0)).clamp_max(1.0)

    def base(self) -> Tensor:
        """What is said without looking: the share of each class [K], strictly between 0 and 1; the mean label [1]."""
        return self.label_mean if self.values else (self.seen + 1.0) / (self.seen.sum() + len(self.seen))

    def encode(self, rows: Tensor) -> Tensor:
        """What table rows [n, C, width] say, drawn towards the base where they have seen little.

        Log-odds [n, C]; of several classes, logs [n, C · K] of how much likelier than usual each is; of values, means
        [n, C].
        """
        if self.values:
            weight, mean = rows.unbind(2)
            return mean * weight / (weight + PRIOR_ROWS)
        base = self.base()
        counts = rows + PRIOR_ROWS * base
        if not self.schema.target.classes:
            return torch.log(counts[:, :, 1] / counts[:, :, 0])
        return torch.log(counts / (counts.sum(2, keepdim=True) * base)).flatten(1)

    def problem(self, tensors: dict[str, Tensor]) -> str | None:
        """See the base class."""
        rows = tensors["table.rows"]
        if bool((rows[:, :1] if self.values else rows).lt(0.0).any()):
            return "table.rows holds a negative count"
        return super().problem(tensors)


class NaiveBayes(Counter):
    """Naive Bayes: a normal distribution of each number (signed log1p) for each class, counts of categories.

    `class_mean`, `class_var`, `class_count` [K, N]. Probabilities are too sure where columns say the same thing
    twice, as always with this family; one number says at most `SCALED_LIMIT` nats.
    """

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed)
        shape = len(self.seen), len(schema.numbers)
        self.register_buffer("class_mean", torch.zeros(shape))
        self.register_buffer("class_var", torch.ones(shape))
        self.register_buffer("class_count", torch.zeros(shape))

    class_mean: Tensor
    class_var: Tensor
    class_count: Tensor

    def statistics(self) -> dict[str, Tensor]:
        """See the base class."""
        own = {name: getattr(self, name) for name in ("class_mean", "class_var", "class_count")}
        return super().statistics() | own

    def fold(self, numbers: Tensor, encoded: Tensor, label: Tensor, weight: Tensor | None) -> None:
        """See the base class."""
        value = compress(numbers)
        known = torch.isfinite(value)
        for kind in label.unique().long().tolist():
            mine = known & (label == kind)[:, None]
            former = (self.class_mean[kind], self.class_var[kind], self.class_count[kind])
            mean, var, count = merged(*former, value, mine, weight)
            self.class_mean[kind], self.class_var[kind] = mean, var
            self.class_count[kind] = count.clamp_max(SCALER_ROWS)

    def score(self, numbers: Tensor, encoded: Tensor) -> Tensor:
        """See the base class."""
        base = self.base()
        if self.schema.target.classes:
            lifts = encoded.view(len(encoded), -1, len(base))
        else:
            usual = torch.log(base[1] / base[0])
            lifts = torch.stack((torch.zeros_like(encoded), encoded - usual), 2)
        said = torch.log(base) + self.likelihood(compress(numbers)).sum(2) + lifts.sum(1)
        return shares_of(said)

    def likelihood(self, value: Tensor) -> Tensor:
        """Logs [n, K, N] of how likely each value [n, N] is among each class, against the class where it is likeliest.

        0 for an unknown value. A class that has hardly been seen is as likely as the least likely of the others.
        """
        count = self.class_count
        var = (self.class_var * count + self.var * FIRST_ROWS) / (count + FIRST_ROWS) + SMALLEST_VARIANCE
        density = -0.5 * ((value[:, None] - self.class_mean).square() / var + torch.log(var))
        least = torch.where(count > 1.0, density, torch.inf).amin(1, keepdim=True)
        density = torch.where(count > 1.0, density, least)
        said = (density - density.amax(1, keepdim=True)).clamp_min(-SCALED_LIMIT)
        return torch.where((torch.isfinite(value) & (count > 1.0).any(0))[:, None], said, 0.0)

    def problem(self, tensors: dict[str, Tensor]) -> str | None:
        """See the base class."""
        for name in ("class_var", "class_count"):
            if bool((tensors[name] < 0).any()):
                return f"{name} holds a negative number"
        return super().problem(tensors)


class Neighbours(Counter):
    """The `neighbours` nearest of the newest `window` rows vote, each alike, and the base rate has one vote.

    Where values are predicted it is the mean of theirs. A row has as many votes as its weight. Near is by Euclidean
    distance over scaled numbers and encoded categories. `kept` [window, columns + 2] holds the rows, weight and label
    last, as a ring; `filled` [2] says how many there are and where the next goes.
    """

    kept: Tensor
    filled: Tensor

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed)
        self.register_buffer("kept", torch.zeros(config.window, self.columns + 2))
        self.register_buffer("filled", torch.zeros(2))

    def statistics(self) -> dict[str, Tensor]:
        """See the base class."""
        return super().statistics() | {"kept": self.kept, "filled": self.filled}

    def place(self, numbers: Tensor, encoded: Tensor) -> Tensor:
        """Where rows are [n, columns]: a category's K numbers weigh together as one does."""
        return torch.cat((self.scale(numbers), encoded / self.schema.target.width**0.5), 1)

    def fold(self, numbers: Tensor, encoded: Tensor, label: Tensor, weight: Tensor | None) -> None:
        """See the base class."""
        votes = torch.ones_like(label) if weight is None else weight
        rows = torch.cat((self.place(numbers, encoded), votes[:, None], label[:, None]), 1)
        size, start = len(self.kept), int(self.filled[1])
        newest = rows[-size:]
        at = (start + len(rows) - len(newest) + torch.arange(len(newest))) % size
        self.kept.index_copy_(0, at, newest)
        count = min(int(self.filled[0]) + len(rows), size)
        self.filled = torch.tensor([count, (start + len(rows)) % size], dtype=torch.float32)

    def score(self, numbers: Tensor, encoded: Tensor) -> Tensor:
        """See the base class."""
        count, base = int(self.filled[0]), self.base()
        nearest = min(self.config.neighbours, count)
        if not nearest:
            return base.expand(len(numbers)).clone() if self.values else base.repeat(len(numbers), 1)
        kept = self.kept[:count]
        # Not by matrix products: those round a row differently in other company, and neighbours would change.
        exact = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(self.place(numbers, encoded), kept[:, :-2], compute_mode=exact)
        chosen = distance.topk(nearest, dim=1, largest=False, sorted=False).indices
        votes, label = kept[:, -2][chosen], kept[:, -1][chosen]
        if self.values:
            return base + ((label - base) * votes).sum(1) / votes.sum(1)
        said = base.repeat(len(numbers), 1).scatter_add_(1, label.long(), votes)
        return said / (votes.sum(1, keepdim=True) + 1.0)

    def problem(self, tensors: dict[str, Tensor]) -> str | None:
        """See the base class."""
        count, start = tensors["filled"].tolist()
        size = len(self.kept)
        if not (0 <= count <= size and 0 <= start < size):
            return "filled does not fit the window"
        votes, label = tensors["kept"][:, -2], tensors["kept"][:, -1]
        if not self.schema.target.usable(label.numpy()).all():
            return "kept holds a label that no row can have"
        if bool((votes < 0).any()):
            return "kept holds a negative weight"
        return super().problem(tensors)

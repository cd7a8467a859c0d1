"""Families that learn without gradients: they count, remember or split. Naive Bayes and nearest neighbours.

Their table has two columns, the negatives and the positives that were seen with a category value. From these
follows the value's log-odds, counted before the row's own label is (Prokhorenkova et al. 2018): so a category
of any size is one number for a neighbour's distance or a tree's split, and a row never sees its own answer.
"""

import torch
from torch import Tensor

from learners.batch import ModelConfig, Schema
from learners.models.base import (
    LARGEST_LOGIT,
    SCALED_LIMIT,
    SCALER_ROWS,
    SMALLEST_VARIANCE,
    EventModel,
    compress,
    merged,
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
        super().__init__(schema, config, torch.zeros(len(schema.categories) * config.rows, 2))
        self.seed = seed

    def scores(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """See the base class."""
        return self.score(numbers, self.encode(rows))

    def score(self, numbers: Tensor, encoded: Tensor) -> Tensor:
        """Probabilities [n] of raw numbers [n, N] and the log-odds [n, C] of the categories."""
        raise NotImplementedError

    def fold(self, numbers: Tensor, encoded: Tensor, label: Tensor, weight: Tensor | None) -> None:
        """Learn raw numbers [n, N], log-odds [n, C] and labels 0 or 1 [n], in this order.

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

        The table rows it touched; None, and nothing has changed, if a label is neither 0 nor 1 or a weight not
        above 0. A number is counted where it is finite.
        """
        if not bool(((label == 0) | (label == 1)).all()):
            return None
        if weight is not None and not bool((torch.isfinite(weight) & (weight > 0.0)).all()):
            return None
        encoded = self.encode(self.table[index])
        self.observe(numbers, label, weight)
        self.fold(numbers, encoded, label, weight)
        unique: tuple[Tensor, Tensor] = torch.unique(index, return_inverse=True)
        touched, inverse = unique
        fresh = torch.zeros(len(touched), 2)
        for column, share in enumerate((1.0 - label, label)):
            share = share if weight is None else share * weight
            fresh[:, column].index_add_(0, inverse.flatten(), share.repeat_interleave(index.shape[1]))
        counts = self.table[touched] + fresh
        self.table[touched] = counts * (CATEGORY_ROWS / counts.sum(1, keepdim=True)).clamp_max_(1.0)
        return touched

    def counted(self, fresh: Tensor) -> Tensor:
        """`seen` after `fresh` [2] further negatives and positives. It goes on: there is no head to correct it."""
        total = self.seen + fresh
        return total * (CLASS_ROWS / total.sum().clamp_min(1.0)).clamp_max(1.0)

    def base_rate(self) -> Tensor:
        """The share of positives, a scalar strictly between 0 and 1."""
        return (self.seen[1] + 1.0) / (self.seen.sum() + 2.0)

    def encode(self, rows: Tensor) -> Tensor:
        """Log-odds [n, C] of counts [n, C, 2], drawn towards the base rate where they are few."""
        base = self.base_rate()
        negatives = rows[:, :, 0] + PRIOR_ROWS * (1.0 - base)
        return torch.log((rows[:, :, 1] + PRIOR_ROWS * base) / negatives)

    def problem(self, tensors: dict[str, Tensor]) -> str | None:
        """See the base class."""
        if bool((tensors["table.rows"] < 0).any()):
            return "table.rows holds a negative count"
        return super().problem(tensors)


class NaiveBayes(Counter):
    """Naive Bayes: a normal distribution of each number (signed log1p) for each class, counts of categories.

    `class_mean`, `class_var`, `class_count` [2, N]. Probabilities are too sure where columns say the same thing
    twice, as always with this family; one number says at most `SCALED_LIMIT` nats.
    """

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed)
        numbers = len(schema.numbers)
        self.register_buffer("class_mean", torch.zeros(2, numbers))
        self.register_buffer("class_var", torch.ones(2, numbers))
        self.register_buffer("class_count", torch.zeros(2, numbers))

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
        both = []
        for kind in (0, 1):
            mine = known & (label == kind)[:, None]
            former = (self.class_mean[kind], self.class_var[kind], self.class_count[kind])
            both.append(merged(*former, value, mine, weight))
        self.class_mean, self.class_var, count = (torch.stack(pair) for pair in zip(*both, strict=True))
        self.class_count = count.clamp_max(SCALER_ROWS)

    def score(self, numbers: Tensor, encoded: Tensor) -> Tensor:
        """See the base class."""
        base = torch.logit(self.base_rate())
        said = self.likelihood(compress(numbers)).sum(1) + (encoded - base).sum(1)
        return torch.sigmoid((base + said).clamp_(-LARGEST_LOGIT, LARGEST_LOGIT))

    def likelihood(self, value: Tensor) -> Tensor:
        """Log of how much likelier each value [n, N] is among positives; 0 for an unknown one."""
        count = self.class_count
        var = (self.class_var * count + self.var * FIRST_ROWS) / (count + FIRST_ROWS) + SMALLEST_VARIANCE
        density = -0.5 * ((value[:, None] - self.class_mean).square() / var + torch.log(var))
        ratio = torch.nan_to_num(density[:, 1] - density[:, 0], nan=0.0)
        both = (count > 1.0).all(0)
        return torch.where(both & torch.isfinite(value), ratio.clamp_(-SCALED_LIMIT, SCALED_LIMIT), 0.0)

    def problem(self, tensors: dict[str, Tensor]) -> str | None:
        """See the base class."""
        for name in ("class_var", "class_count"):
            if bool((tensors[name] < 0).any()):
                return f"{name} holds a negative number"
        return super().problem(tensors)


class Neighbours(Counter):
    """The `neighbours` nearest of the newest `window` rows vote, each alike, and the base rate has one vote.

    A row has as many votes as its weight. Near is by Euclidean distance over scaled numbers and the categories'
    log-odds. `kept` [window, N + C + 2] holds the rows, weight and label last, as a ring; `filled` [2] says how many
    there are and where the next goes.
    """

    kept: Tensor
    filled: Tensor

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed)
        columns = len(schema.numbers) + len(schema.categories)
        self.register_buffer("kept", torch.zeros(config.window, columns + 2))
        self.register_buffer("filled", torch.zeros(2))

    def statistics(self) -> dict[str, Tensor]:
        """See the base class."""
        return super().statistics() | {"kept": self.kept, "filled": self.filled}

    def fold(self, numbers: Tensor, encoded: Tensor, label: Tensor, weight: Tensor | None) -> None:
        """See the base class."""
        votes = torch.ones_like(label) if weight is None else weight
        rows = torch.cat((self.scale(numbers), encoded, votes[:, None], label[:, None]), 1)
        size, start = len(self.kept), int(self.filled[1])
        newest = rows[-size:]
        at = (start + len(rows) - len(newest) + torch.arange(len(newest))) % size
        self.kept.index_copy_(0, at, newest)
        count = min(int(self.filled[0]) + len(rows), size)
        self.filled = torch.tensor([count, (start + len(rows)) % size], dtype=torch.float32)

    def score(self, numbers: Tensor, encoded: Tensor) -> Tensor:
        """See the base class."""
        count = int(self.filled[0])
        nearest = min(self.config.neighbours, count)
        if not nearest:
            return self.base_rate().expand(len(numbers)).clone()
        kept = self.kept[:count]
        query = torch.cat((self.scale(numbers), encoded), 1)
        # Not by matrix products: those round a row differently in other company, and neighbours would change.
        distance = torch.cdist(query, kept[:, :-2], compute_mode="donot_use_mm_for_euclid_dist")
        chosen = distance.topk(nearest, dim=1, largest=False, sorted=False).indices
        votes, label = kept[:, -2][chosen], kept[:, -1][chosen]
        return ((label * votes).sum(1) + self.base_rate()) / (votes.sum(1) + 1.0)

    def problem(self, tensors: dict[str, Tensor]) -> str | None:
        """See the base class."""
        count, start = tensors["filled"].tolist()
        size = len(self.kept)
        if not (0 <= count <= size and 0 <= start < size):
            return "filled does not fit the window"
        votes, label = tensors["kept"][:, -2], tensors["kept"][:, -1]
        if not bool(((label == 0) | (label == 1)).all()):
            return "kept holds a label that is neither 0 nor 1"
        if bool((votes < 0).any()):
            return "kept holds a negative weight"
        return super().problem(tensors)

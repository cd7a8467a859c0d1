"""The Hoeffding tree and the adaptive random forest, over numbers (signed log1p) and categories as encoded.

They are our own because River's can only be saved by pickle, which nothing here is ever read from. What scoring
needs (a forest's `nodes`, a tree's `observers` too) travels; what only growing needs stays.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.batch import ModelConfig, Schema
from learners.models import leaf_kernels as leaves
from learners.models import tree_kernels as kernels
from learners.models.base import compress
from learners.models.counting import Counter
from learners.models.tree_kernels import Grove, Habits

LEAF_PRIOR = 2.0  # rows of the base rate that a leaf is thought to have had
ROW_SEEDS = 0x7FFFFFFF


class HoeffdingTree(Counter):
    """One very fast decision tree (Domingos & Hulten 2000), which never unlearns a split.

    A leaf says its shares of the classes or what naive Bayes makes of its columns, whichever had the lower loss of
    late (after Gama, Rocha & Medas 2003). Where labels are values it says their mean, and a split is by the variance
    that it explains (after Ikonomovska, Gama & Džeroski 2011). The tree grows to `leaves` leaves; after that only what
    they count goes on.
    """

    adaptive = False
    nodes: Tensor
    observers: Tensor
    active: Tensor

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed)
        trees = config.trees if self.adaptive else 1
        blocks = 2 * trees if self.adaptive else 1  # a forest's tree may have another grown beside it
        size = 2 * config.leaves - 1
        # A forest's leaf sees some of the columns only, so that its trees differ.
        observed = min(round(self.columns**0.5) + 1, self.columns) if self.adaptive else self.columns
        classes = len(self.seen)
        record = leaves.NODE + (2 if self.values else classes)
        column = leaves.BIN + 2 * leaves.BINS if self.values else leaves.COLUMN + 3 * classes
        self.register_buffer("nodes", torch.zeros(blocks, size, record))
        self.nodes[:, :, leaves.FEATURE] = leaves.LEAF
        self.register_buffer("active", torch.arange(trees, dtype=torch.float32))
        self.register_buffer("observers", torch.zeros(blocks, size, observed, column))
        self._memory = {
            "totals": torch.zeros(blocks, size, 1 + (3 if self.values else classes), dtype=torch.float64),
            "subset": torch.arange(observed, dtype=torch.int32).repeat(blocks, size, 1),
            "used": torch.ones(blocks, dtype=torch.int32),
            "births": torch.arange(blocks, dtype=torch.int64),
            "blocks": torch.stack((torch.arange(trees), torch.arange(trees) + trees), 1).to(torch.int32),
            "watch": torch.zeros(trees, kernels.WATCHED, dtype=torch.float64),
            "learned": torch.zeros(1, dtype=torch.int64),
        }

    @property
    def _seed(self) -> int:
        return self.seed & ROW_SEEDS

    def _grove(self) -> Grove:
        arrays = {name: value.numpy() for name, value in self._memory.items() if name != "learned"}
        return Grove(values=self.values, nodes=self.nodes.numpy(), observers=self.observers.numpy(), **arrays)

    def statistics(self) -> dict[str, Tensor]:
        """See the base class."""
        own = {"nodes": self.nodes, "active": self.active}
        return super().statistics() | own | ({"observers": self.observers} if self._by_columns else {})

    def memory(self) -> dict[str, Tensor]:
        """See the base class."""
        return self._memory | ({} if self._by_columns else {"observers": self.observers})

    @property
    def _by_columns(self) -> bool:
        """Whether a leaf may score by its columns, and not only by what it counted."""
        return not (self.adaptive or self.values)

    def fold(self, numbers: Tensor, encoded: Tensor, label: Tensor, weight: Tensor | None) -> None:
        """See the base class."""
        learned, config, grove = self._memory["learned"], self.config, self._grove()
        if not learned:  # not before: who only serves has no use for the compiled code
            for block in range(len(self.nodes)):
                kernels.plant(grove, block, self.columns, self._seed)
        votes = torch.ones_like(label) if weight is None else weight
        kernels.learn(
            grove, Habits(self.adaptive, float(config.grace), config.split_confidence, self._seed),
            self._features(numbers, encoded), label.numpy(), votes.numpy(), int(learned),
            float(self.unit),
        )  # fmt: skip
        learned += len(label)
        self.active.copy_(self._memory["blocks"][:, 0])

    def score(self, numbers: Tensor, encoded: Tensor) -> Tensor:
        """See the base class."""
        rows, active = self._features(numbers, encoded), self.active.long().numpy()
        base = self.base().numpy()
        out = np.empty((len(rows), len(base)), np.float32)
        kernels.score(self._grove(), active, rows, base, LEAF_PRIOR, out)
        return torch.from_numpy(out[:, 0] if self.values else out)

    @staticmethod
    def _features(numbers: Tensor, encoded: Tensor) -> NDArray[np.float32]:
        joined: NDArray[np.float32] = torch.cat((compress(numbers), encoded), 1).numpy()
        return joined

    def problem(self, tensors: dict[str, Tensor]) -> str | None:
        """See the base class. A child that is not behind its parent could send a score round in a circle."""
        nodes, active = tensors["nodes"], tensors["active"]
        feature, children = nodes[:, :, leaves.FEATURE], nodes[:, :, leaves.LEFT : leaves.RIGHT + 1]
        inner = feature >= 0
        if bool((feature >= self.columns).any()) or bool((feature != feature.floor()).any()):
            return "nodes holds a feature that is no column"
        own = torch.arange(nodes.shape[1])[None, :, None]
        fit = (children > own) & (children < nodes.shape[1]) & (children == children.floor())
        if not bool(fit[inner].all()):
            return "nodes holds a child that is not behind its parent"
        counts = nodes[:, :, leaves.COUNTS : leaves.BY_COUNT]
        if bool((counts[:, :, :1] if self.values else counts).lt(0.0).any()):
            return "nodes holds a negative count"
        if self._by_columns:
            weights, spreads = (tensors["observers"][..., at : -leaves.COLUMN : 3] for at in (0, 2))
            if bool((weights < 0).any() or (spreads < 0).any()):
                return "observers holds a negative weight or spread"
        if bool(((active < 0) | (active >= len(nodes))).any()):
            return "active names a tree that is not there"
        return super().problem(tensors)


class AdaptiveRandomForest(HoeffdingTree):
    """Adaptive random forest (Gomes et al. 2017): `trees` Hoeffding trees that differ, each replaced when worse.

    They differ by random weights of the rows (Poisson, 6 on average) and by the columns that a leaf observes.
    Each tree's errors are watched; the detector is HDDM (Frías-Blanco et al. 2015) where the paper has ADWIN: it
    has the same kind of guarantee and its state is four numbers. Trees vote alike, by their leaves' shares alone:
    naive Bayes in the leaves would make every update several times as large.
    """

    adaptive = True

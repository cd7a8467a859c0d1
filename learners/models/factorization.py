"""Nets that learn products of features: DCN-v2-like and DeepFM.

A table row is [linear weight, embedding]: the first column is summed into the logit directly (the "wide"
part), the rest feeds the nets.
"""

import torch
from torch import Tensor, nn

from learners.batch import ModelConfig, Schema
from learners.models.base import LARGEST_FIRST_WEIGHT, EventModel

CROSS_LAYERS = 2


class CrossNet(EventModel):
    """DCN-v2 (Wang et al. 2021), parallel form: cross layers x ← x0 ⊙ (Wx + b) + x beside a ReLU net."""

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=1 + config.embedding)
        inputs = len(schema.numbers) + len(schema.categories) * config.embedding
        # Products start at zero: a fresh net cannot explode on the first rows.
        self.crosses = nn.ModuleList(self.linear(inputs, inputs, zero=True) for _ in range(CROSS_LAYERS))
        self.deep = deep_net(self, inputs, config.hidden)
        self.output = self.linear(inputs + (config.hidden or (inputs,))[-1], 1, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n]; see the base class for shapes."""
        first = torch.cat((scaled, rows[:, :, 1:].flatten(1)), 1)
        crossed = first
        for cross in self.crosses:
            crossed = torch.addcmul(crossed, first, cross(crossed))
        logits: Tensor = self.output(torch.cat((crossed, self.deep(first)), 1)).squeeze(1)
        return logits + rows[:, :, 0].sum(1)


class DeepFM(EventModel):
    """DeepFM (Guo et al. 2017): linear + products of pairs of fields + a ReLU net. A number is a field."""

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=1 + config.embedding)
        numbers = len(schema.numbers)
        inputs = numbers + len(schema.categories) * config.embedding
        self.directions = nn.Parameter(
            torch.empty(numbers, config.embedding)
        )  # row j is the embedding of number j
        with torch.no_grad():
            self.directions.uniform_(-LARGEST_FIRST_WEIGHT, LARGEST_FIRST_WEIGHT, generator=self.generator)
        self.deep = deep_net(self, inputs, config.hidden)
        self.output = self.linear(numbers + (config.hidden or (inputs,))[-1], 1, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n]; see the base class for shapes."""
        embeddings = rows[:, :, 1:]
        deep = self.deep(torch.cat((scaled, embeddings.flatten(1)), 1))
        logits: Tensor = self.output(torch.cat((scaled, deep), 1)).squeeze(1)
        return logits + rows[:, :, 0].sum(1) + self.pairs(scaled, embeddings)

    def pairs(self, scaled: Tensor, embeddings: Tensor) -> Tensor:
        """Dot products of the all pairs of fields, summed [n]: half of ‖Σv‖² less Σ‖v‖² (Rendle 2010)."""
        total = scaled @ self.directions + embeddings.sum(1)
        own = embeddings.square().sum((1, 2)) + scaled.square() @ self.directions.square().sum(1)
        return 0.5 * (total.square().sum(1) - own)


def deep_net(model: EventModel, inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear and ReLU for each width; without widths the input passes through."""
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *hidden), hidden, strict=False):
        layers += [model.linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)

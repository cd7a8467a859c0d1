"""Nets over embeddings: a plain one, those that learn products of features (DCN-v2-like, DeepFM), two towers.

A table row is [linear weight, embedding]: the first column is summed into the logit directly (the "wide"
part), the rest feeds the nets. Where there are K classes, so many columns are.
"""

import math

import torch
from torch import Tensor, nn

from infra.errors import UserError
from learners.batch import ModelConfig, Schema
from learners.models.net import LARGEST_FIRST_WEIGHT, Net, deep_net

CROSS_LAYERS = 2


class Perceptron(Net):
    """A multilayer perceptron over numbers and embeddings, beside a linear part for the categories."""

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=schema.target.width + config.embedding)
        inputs = len(schema.numbers) + len(config.recent_labels) + len(schema.fields) * config.embedding
        self.deep = deep_net(self, inputs, config.hidden)
        self.output = self.linear((config.hidden or (inputs,))[-1], self.outputs, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n]; see the base class for shapes."""
        first = torch.cat((self.beside(scaled), rows[:, :, self.outputs :].flatten(1)), 1)
        return self.flat(self.output(self.deep(first))) + self.wide(rows)


class CrossNet(Net):
    """DCN-v2 (Wang et al. 2021), parallel form: cross layers x ← x0 ⊙ (Wx + b) + x beside a deep net."""

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=schema.target.width + config.embedding)
        inputs = len(schema.numbers) + len(config.recent_labels) + len(schema.fields) * config.embedding
        # Products start at zero: a fresh net cannot explode on the first rows.
        self.crosses = nn.ModuleList(self.linear(inputs, inputs, zero=True) for _ in range(CROSS_LAYERS))
        self.deep = deep_net(self, inputs, config.hidden)
        self.output = self.linear(inputs + (config.hidden or (inputs,))[-1], self.outputs, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n]; see the base class for shapes."""
        first = torch.cat((self.beside(scaled), rows[:, :, self.outputs :].flatten(1)), 1)
        crossed = first
        for cross in self.crosses:
            crossed = torch.addcmul(crossed, first, cross(crossed))
        return self.flat(self.output(torch.cat((crossed, self.deep(first)), 1))) + self.wide(rows)


class DeepFM(Net):
    """DeepFM (Guo et al. 2017): linear + products of pairs of fields + a deep net. A number is a field."""

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=1 + config.embedding)
        numbers = len(schema.numbers) + len(config.recent_labels)
        inputs = numbers + len(schema.fields) * config.embedding
        self.directions = nn.Parameter(
            torch.empty(numbers, config.embedding)
        )  # row j is the embedding of number j
        with torch.no_grad():
            self.directions.uniform_(-LARGEST_FIRST_WEIGHT, LARGEST_FIRST_WEIGHT, generator=self.generator)
        self.deep = deep_net(self, inputs, config.hidden)
        self.output = self.linear(numbers + (config.hidden or (inputs,))[-1], 1, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n]; see the base class for shapes."""
        scaled, embeddings = self.beside(scaled), rows[:, :, 1:]
        deep = self.deep(torch.cat((scaled, embeddings.flatten(1)), 1))
        logits: Tensor = self.output(torch.cat((scaled, deep), 1)).squeeze(1)
        return logits + rows[:, :, 0].sum(1) + self.pairs(scaled, embeddings)

    def pairs(self, scaled: Tensor, embeddings: Tensor) -> Tensor:
        """Dot products of the all pairs of fields, summed [n]: half of ‖Σv‖² less Σ‖v‖² (Rendle 2010)."""
        total = scaled @ self.directions + embeddings.sum(1)
        own = embeddings.square().sum((1, 2)) + scaled.square() @ self.directions.square().sum(1)
        return 0.5 * (total.square().sum(1) - own)


class TwoTower(Net):
    """Two towers (Yi et al. 2019): a net for each side, and the dot product of what they give.

    The second tower has the columns of `config.tower` (the item, say), the first all others (the user and the
    circumstances). Without that list each tower gets half of the numbers and half of the categories. A linear
    part is beside them.
    """

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=1 + config.embedding)
        # The second tower gives nothing at first, so that a fresh model says the base rate.
        first, second = split_columns(schema, config.tower)
        self.sides = nn.ModuleList((_Tower(self, *first), _Tower(self, *second, zero=True)))
        self.output = self.linear(len(schema.numbers), 1, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n]; see the base class for shapes."""
        first, second = (side(scaled, rows[:, :, 1:]) for side in self.sides)
        logits: Tensor = self.output(scaled).squeeze(1) + rows[:, :, 0].sum(1)
        logits += (first * second).sum(1) / math.sqrt(first.shape[1])
        return logits


class _Tower(nn.Module):
    """One side: hidden layers over its own columns, the last of them linear."""

    numbers: Tensor
    categories: Tensor

    def __init__(self, model: Net, numbers: list[int], categories: list[int], *, zero: bool = False) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int64), persistent=False)
        self.register_buffer("categories", torch.tensor(categories, dtype=torch.int64), persistent=False)
        hidden = model.config.hidden or (model.config.embedding,)
        inputs = len(numbers) + len(categories) * model.config.embedding
        self.deep = deep_net(model, inputs, hidden[:-1])
        self.output = model.linear((inputs, *hidden)[-2], hidden[-1], zero=zero)

    def forward(self, scaled: Tensor, embeddings: Tensor) -> Tensor:
        """The side's vector [n, last width] of all scaled numbers [n, N] and embeddings [n, C, embedding]."""
        mine = (scaled.index_select(1, self.numbers), embeddings.index_select(1, self.categories).flatten(1))
        vector: Tensor = self.output(self.deep(torch.cat(mine, 1)))
        return vector


def split_columns(
    schema: Schema, tower: tuple[str, ...]
) -> tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]:
    """(numbers, categories) of the first and of the second tower. UserError for an unknown or a full tower."""
    names = (schema.numbers, schema.fields)
    if not tower:
        tower = tuple(name for columns in names for name in columns[(len(columns) + 1) // 2 :])
    elif unknown := set(tower) - {*schema.numbers, *schema.fields}:
        fix = "list the columns of the second tower, as `task check` prints them"
        raise UserError(f"model tower lists {min(unknown)!r}, which is no column of the model", fix)
    elif {*schema.numbers, *schema.fields} <= set(tower):
        raise UserError("model tower lists every column", "leave some of them to the first tower")
    split = [
        tuple([at for at, name in enumerate(columns) if (name in tower) == second] for columns in names)
        for second in (False, True)
    ]
    return (split[0][0], split[0][1]), (split[1][0], split[1][1])

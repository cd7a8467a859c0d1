"""Logistic regression over scaled numbers and one hashed weight a category value."""

from torch import Tensor

from learners.batch import ModelConfig, Schema
from learners.models.base import EventModel


class Logistic(EventModel):
    """logit = base rate + w · numbers + Σ table[category]. Convex, fast, and easy to read."""

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=1)
        self.output = self.linear(len(schema.numbers), 1, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n]; see the base class for shapes."""
        logits: Tensor = self.output(scaled).squeeze(1) + rows.sum((1, 2))
        return logits

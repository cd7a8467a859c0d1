"""Model families by name. Every family is an `EventModel`: the same inputs, the same table, another head."""

from learners.batch import ModelConfig, Schema
from learners.models.base import EventModel
from learners.models.factorization import CrossNet, DeepFM
from learners.models.linear import Logistic

_FAMILIES = {"dcn": CrossNet, "deepfm": DeepFM, "logistic": Logistic}


def build_model(schema: Schema, config: ModelConfig, seed: int) -> EventModel:
    """A fresh model on the CPU, a pure function of its arguments. Raises UserError if the schema is empty."""
    return _FAMILIES[config.family](schema, config, seed)


__all__ = ["EventModel", "build_model"]

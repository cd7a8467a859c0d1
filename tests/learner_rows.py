"""Rows with a rule that a model can learn, for the tests of learners/."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from learners import weights
from learners.batch import Batch, ModelConfig, Schema
from learners.blocks import Block
from learners.lesson import GradientLesson
from learners.optim import Optimiser
from learners.target import Target
from learners.trainer import Trainer

SCHEMA = Schema(("amount", "count", "rate"), ("shop", "card"), "fingerprint-1")
# The same with a block of each kind.
RICH = Schema(
    (*SCHEMA.numbers, *(f"card_amount_last_{i}" for i in (1, 2, 3))),
    SCHEMA.categories,
    "fingerprint-2",
    (
        Block("card_amount", "series", 3, "card"),
        Block("card_shop", "codes", 4, "card"),
        Block("comment", "text", 6),
        Block("tags", "list", 3),
        Block("photo", "image", 5 * 4, shape=(5, 4, 1)),
    ),
)
CONFIG = ModelConfig(embedding=4, rows=2048, hidden=(16, 8), batch_size=32, learning_rate=0.01)
RATES = {
    "adam": 0.01, "adamw": 0.01, "adagrad": 0.05, "rowwise_adagrad": 0.05, "rmsprop": 0.01, "sgd": 0.5,
    "ftrl": 0.3,
}  # fmt: skip


def rows(n: int, seed: int = 0, schema: Schema = SCHEMA) -> Batch:
    """`n` rows; the label follows the first number and the parity of the first category, with noise.

    The last number is NaN in a fifth of the rows; categories are 64-bit, negative and 0 (missing) included. What is in
    blocks is noise, of every length from none to full.
    """
    random = np.random.default_rng(seed)
    numbers = random.normal(0, 3, (n, len(schema.numbers))).astype(np.float32)
    values = random.integers(0, 40, (n, len(schema.categories)))
    signal = np.zeros(n)
    if schema.numbers:
        numbers[random.random(n) < 0.2, -1] = np.nan
        signal += np.where(np.isnan(numbers[:, 0]), 0.0, numbers[:, 0])
    if schema.categories:
        signal += np.where(values[:, 0] % 2 == 1, 2.0, -2.0)
    label = (signal + random.normal(0, 0.5, n) > 0).astype(np.float32)
    moments = np.arange(n, dtype=np.int64)
    categories = np.where(values == 0, 0, values * 6_364_136_223_846_793_005).astype(np.int64)
    if schema.blocks:
        categories = np.column_stack((categories, *(_noise(block, n, random) for block in schema.blocks)))
    served = np.full(n, 0.5, np.float32)
    return Batch([f"e-{i}" for i in range(n)], moments, moments + 10, numbers, categories, served, label)


def _noise(block: Block, n: int, random: np.random.Generator) -> np.ndarray:
    """Values int64 [n, width] for a block, unless it is one of numbers: an image, or ids with empty places behind."""
    if block.kind == "image":
        return random.integers(-(2**63), 2**63 - 1, (n, block.width))
    ids = random.integers(1, 2**62, (n, block.width))
    return np.where(np.arange(block.width) < random.integers(0, block.width + 1, (n, 1)), ids, 0)


def log_loss(scores: np.ndarray, label: np.ndarray) -> float:
    """Mean log loss in nats."""
    scores = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(label * np.log(scores) + (1 - label) * np.log(1 - scores)))


def trainer_of(
    family: str = "dcn", optimiser: str = "adam", schema: Schema = SCHEMA, **settings: Any
) -> Trainer:
    """A trainer of a small model, at a rate that suits its optimiser."""
    settings = {"learning_rate": RATES[optimiser]} | settings
    return Trainer(schema, replace(CONFIG, family=family, optimiser=optimiser, **settings), 7, "L1", "cpu")


def optimiser_of(trainer: Trainer) -> Optimiser:
    """The optimiser of a trainer that has one."""
    assert isinstance(trainer.lesson, GradientLesson)
    return trainer.lesson.optimiser


def contents(trainer: Trainer) -> dict[str, bytes]:
    """Every bit that matters of a trainer, memory of untouched rows included."""
    every_row = torch.ones_like(trainer.touched)
    tensors = weights.extract(trainer.model, every_row)
    tensors |= trainer.lesson.memory(torch.arange(len(every_row)))
    tensors |= {"touched": trainer.touched, "changed": trainer.changed}
    found = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    numbers = (trainer.examples, trainer.steps, trainer.refresh, trainer.chain, trainer.unsent)
    return found | {"numbers": repr((numbers, trainer.lesson.record())).encode()}


def auc(scores: np.ndarray, label: np.ndarray) -> float:
    """Share of pairs of a positive and a negative row that are scored in the right order."""
    positive, negative = scores[label == 1][:, None], scores[label == 0][None, :]
    return float(np.mean((positive > negative) + 0.5 * (positive == negative)))


VALUES = replace(SCHEMA, target=Target("regression"))
COLOURS = Target("multiclass", ("red", "green", "blue"))


def value_rows(
    n: int,
    seed: int = 0,
    schema: Schema = SCHEMA,
    *,
    unit: float = 1.0,
    level: float = 0.0,
    noise: float = 0.5,
) -> Batch:
    """Rows as `rows`, whose label is a value: `level` and `unit` times what follows from number and category."""
    batch = rows(n, seed, schema)
    random = np.random.default_rng(seed + 1)
    odd = np.where(batch.categories[:, 0] % 2 == 1, 2.0, -2.0)
    signal = batch.numbers[:, 0].astype(np.float64) + odd + random.normal(0, noise, n)
    return replace(batch, label=(level + unit * signal).astype(np.float32))


def class_rows(n: int, seed: int = 0, schema: Schema = SCHEMA) -> Batch:
    """Rows as of `value_rows`, whose label is one of three classes by the value; the last is rare."""
    batch = value_rows(n, seed, schema)
    return replace(batch, label=np.digitize(batch.label, (-1.0, 5.0)).astype(np.float32))

"""Rows with a rule that a model can learn, for the tests of learners/."""

import numpy as np

from learners.batch import Batch, ModelConfig, Schema

SCHEMA = Schema(("amount", "count", "rate"), ("shop", "card"), "fingerprint-1")
CONFIG = ModelConfig(embedding=4, rows=2048, hidden=(16, 8), batch_size=32, learning_rate=0.01)


def rows(n: int, seed: int = 0, schema: Schema = SCHEMA) -> Batch:
    """`n` rows; the label follows the first number and the parity of the first category, with noise.

    The last number is NaN in a fifth of the rows; categories are 64-bit, negative and 0 (missing) included.
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
    served = np.full(n, 0.5, np.float32)
    return Batch([f"e-{i}" for i in range(n)], moments, moments + 10, numbers, categories, served, label)


def log_loss(scores: np.ndarray, label: np.ndarray) -> float:
    """Mean log loss in nats."""
    scores = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(label * np.log(scores) + (1 - label) * np.log(1 - scores)))

"""How large a model of a task can become, known before it is built: torch is not imported to read a task file."""

from itertools import pairwise

from learners.batch import ModelConfig

LARGEST_MODEL = 15 << 20
"""Bytes of a whole model at most: it travels in one Kafka record of at most 16 MiB."""

_HEADER = 4096  # names and shapes of the tensors
_CROSS_LAYERS = 2


def whole_model_bytes(config: ModelConfig, numbers: int, categories: int) -> int:
    """Bytes of a whole model as it is sent once every row of its table was trained; an upper bound.

    A row of the table takes its number (8 bytes) and its weights (4 bytes each); see `learners.weights`.
    """
    return _dense_bytes(config, numbers, categories) + categories * config.rows * _row_bytes(config)


def fitting_rows(config: ModelConfig, numbers: int, categories: int) -> int:
    """The largest power of two of rows with which the model can be sent; 0 where even one row is too much."""
    left = LARGEST_MODEL - _dense_bytes(config, numbers, categories)
    most = left // (categories * _row_bytes(config)) if categories else 0
    return 1 << (most.bit_length() - 1) if most > 0 else 0


def _row_bytes(config: ModelConfig) -> int:
    width = 1 if config.family == "logistic" else 1 + config.embedding
    return 8 + 4 * width


def _dense_bytes(config: ModelConfig, numbers: int, categories: int) -> int:
    """Layers and running statistics, float32; see `learners.models`."""
    statistics = 3 * numbers + 2
    if config.family == "logistic":
        return _HEADER + 4 * (statistics + numbers + 1)
    inputs = numbers + categories * config.embedding
    widths = (inputs, *config.hidden)
    deep = sum((before + 1) * after for before, after in pairwise(widths))
    if config.family == "dcn":
        cross, wide = _CROSS_LAYERS * inputs * (inputs + 1), inputs
    else:
        cross, wide = numbers * config.embedding, numbers
    return _HEADER + 4 * (statistics + deep + cross + wide + widths[-1] + 1)

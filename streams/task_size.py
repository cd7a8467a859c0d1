"""How large a model of a task can become, known before it is built: torch is not imported to read a task file."""

from collections.abc import Sequence
from itertools import pairwise

from learners.batch import COUNTING_FAMILIES, MARGIN_FAMILIES, READS, SEQUENCE_FAMILIES, ModelConfig, Schema
from learners.blocks import Block

LARGEST_MODEL = 4 << 30
"""Bytes of a whole model at most. What a machine has may be less: see `memory`."""

# Whole models that are in memory together, at most. Measured with Adam, whose memory is two more tables.
_SERVING = 4  # the live one, a canary, one that is prepared and what it came in
_LEARNING = 12  # the champion, while a checkpoint is stored
_BESIDE = 6  # each model that learns beside it

_HEADER = 4096  # names and shapes of the tensors
_CROSS_LAYERS = 2
_NODE, _OBSERVED = 6, 2  # numbers of a tree's node, and of a column at one, besides those of each class


def whole_model_bytes(config: ModelConfig, schema: Schema) -> int:
    """Bytes of a whole model as it is sent once every row of its table was trained; an upper bound.

    A row of the table takes its number (8 bytes) and its weights (4 bytes each); see `learners.weights`.
    """
    return _dense_bytes(config, schema) + _fields(config, schema) * config.rows * _row_bytes(
        config, schema.target.width
    )


def fitting_rows(config: ModelConfig, schema: Schema) -> int:
    """The largest power of two of rows with which the model is small enough; 0 where even one row is too much."""
    left, fields = LARGEST_MODEL - _dense_bytes(config, schema), _fields(config, schema)
    most = left // (fields * _row_bytes(config, schema.target.width)) if fields else 0
    return 1 << (most.bit_length() - 1) if most > 0 else 0


def memory(
    schema: Schema, champion: ModelConfig, beside: Sequence[ModelConfig], population: int
) -> dict[str, int]:
    """Bytes: of the champion whole (`model`), and what models take of a serve worker and of the learner at most.

    That is so once every row was trained, with one model of each of the settings `beside`, an earlier champion and a
    population of so many learning at once.
    """
    own, *others = (whole_model_bytes(config, schema) for config in (champion, *beside))
    learning = own * (_LEARNING + _BESIDE * (1 + population)) + _BESIDE * sum(others)
    return {"model": own, "serve": _SERVING * max((own, *others)), "learn": learning}


def decisive_keys(config: ModelConfig) -> tuple[str, ...]:
    """The settings besides `rows` that make a model of this family large; none where no value is too large."""
    if config.family in ("knn", "hoeffding_tree"):
        return ("window" if config.family == "knn" else "leaves",)
    if config.family in (*COUNTING_FAMILIES, "logistic", "svm"):
        return ()
    if config.family in READS:
        return ("embedding", "hidden", "units")
    return ("embedding", "random_features" if config.family == "rff_svm" else "hidden")


def _fields(config: ModelConfig, schema: Schema) -> int:
    """How many fields have rows in the table: a family that counts has none for blocks."""
    return len(schema.categories if config.family in COUNTING_FAMILIES else schema.fields)


def _row_bytes(config: ModelConfig, outputs: int) -> int:
    width = outputs + config.embedding
    if config.family in COUNTING_FAMILIES:
        width = max(2, outputs)
    elif config.family in ("logistic", "svm"):
        width = outputs
    return 8 + 4 * width + (8 if config.table == "exact" else 0)  # an exact one has its id


def _dense_bytes(config: ModelConfig, schema: Schema) -> int:
    """Layers and running statistics, float32; see `learners.models`."""
    numbers, categories = len(schema.numbers), len(schema.categories)
    outputs = schema.target.width
    classes = max(2, outputs)
    statistics = 3 * numbers + 1 + classes + len(config.recent_labels)
    numbers += len(config.recent_labels)
    inputs = numbers + len(schema.fields) * config.embedding
    match config.family:
        case "logistic" | "svm" | "rff_svm":
            layers = outputs * (numbers + 1)
            layers += outputs * config.random_features if config.family == "rff_svm" else 0
            layers += 1 + outputs if config.family in MARGIN_FAMILIES else 0
        case "naive_bayes":
            layers = 3 * classes * numbers
        case "knn":
            layers = config.window * (numbers + categories * outputs + 2) + 2
        case "hoeffding_tree":
            columns = 0 if schema.target.is_value else numbers + categories * outputs
            node = _NODE + classes + (_OBSERVED + 3 * classes) * columns
            layers = 1 + node * (2 * config.leaves - 1)
        case "adaptive_random_forest":
            layers = config.trees * (1 + 2 * (_NODE + classes) * (2 * config.leaves - 1))
        case "two_tower":
            first, *rest = config.hidden or (config.embedding,)
            after = sum((before + 1) * width for before, width in pairwise((first, *rest)))
            layers = numbers + 1 + inputs * first + 2 * (first + after)
        case family if family in READS:
            encoders = _encoders(config, schema)
            inputs += sum(width for width, _ in encoders)
            widths = (inputs, *config.hidden)
            layers = sum((before + 1) * after for before, after in pairwise(widths))
            layers += outputs * (widths[-1] + 1)
            layers += sum(size for _, size in encoders)
        case _:
            layers = _net_size(config, numbers, inputs, outputs)
    return _HEADER + 4 * (statistics + layers)


def _net_size(config: ModelConfig, numbers: int, inputs: int, outputs: int) -> int:
    """Weights of a deep net, what stands beside it, and the output layer over both."""
    widths = (inputs, *config.hidden)
    deep = sum((before + 1) * after for before, after in pairwise(widths))
    beside, wide = {
        "mlp": (0, 0),
        "dcn": (_CROSS_LAYERS * inputs * (inputs + 1), inputs),
        "deepfm": (numbers * config.embedding, numbers),
    }[config.family]
    return deep + beside + outputs * (wide + widths[-1] + 1)


def _encoders(config: ModelConfig, schema: Schema) -> list[tuple[int, int]]:
    """Width and weights of each encoder of a family that reads blocks."""
    if config.family in SEQUENCE_FAMILIES:
        return [_sequence(config, blocks) for blocks in _by_entity(schema.of_kind("series", "codes"))]
    units, size = config.units, config.embedding
    if config.family == "text_cnn":
        return [(3 * units, units * (9 * size + 3)) for _ in schema.of_kind("text")]
    if config.family == "text_rnn_cnn":
        return [(units, units * (3 * (size + units + 2) + 3 * units + 1)) for _ in schema.of_kind("text")]
    return [(units, _image(units, *block.shape)) for block in schema.of_kind("image")]


def _image(units: int, height: int, width: int, channels: int) -> int:
    half = max(1, units // 2)
    layers = half * (9 * channels + 1) + units * (9 * half + 1)
    return layers + units * (units * (height // 4) * (width // 4) + 1)


def _by_entity(blocks: tuple[Block, ...]) -> list[list[Block]]:
    entities = dict.fromkeys(block.entity for block in blocks)
    return [[block for block in blocks if block.entity == entity] for entity in entities]


def _sequence(config: ModelConfig, blocks: list[Block]) -> tuple[int, int]:
    units, layers = config.units, config.layers
    inputs = sum(2 if block.kind == "series" else config.embedding for block in blocks)
    if config.family == "transformer":
        length = max(block.length for block in blocks)
        return units, (inputs + 1 + length + 1 + 2 + layers * (8 * units + 11)) * units
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[config.family]
    return units, gates * units * (inputs + units + 2 + (layers - 1) * (2 * units + 2))

"""How large a model of a task can become, known before it is built: torch is not imported to read a task file."""

from itertools import pairwise

from learners.batch import COUNTING_FAMILIES, MARGIN_FAMILIES, ModelConfig

LARGEST_MODEL = 15 << 20
"""Bytes of a whole model at most: it travels in one Kafka record of at most 16 MiB."""

_HEADER = 4096  # names and shapes of the tensors
_CROSS_LAYERS = 2
_NODE, _OBSERVED = 8, 8  # numbers of a tree's node, and of a column at one


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


def decisive_keys(config: ModelConfig) -> tuple[str, ...]:
    """The settings besides `rows` that make a model of this family large; none where no value is too large."""
    if config.family in ("knn", "hoeffding_tree"):
        return ("window" if config.family == "knn" else "leaves",)
    if config.family in (*COUNTING_FAMILIES, "logistic", "svm"):
        return ()
    return ("embedding", "random_features" if config.family == "rff_svm" else "hidden")


def _row_bytes(config: ModelConfig) -> int:
    width = 1 + config.embedding
    if config.family in COUNTING_FAMILIES:
        width = 2
    elif config.family in ("logistic", "svm"):
        width = 1
    return 8 + 4 * width


def _dense_bytes(config: ModelConfig, numbers: int, categories: int) -> int:
    """Layers and running statistics, float32; see `learners.models`."""
    statistics = 3 * numbers + 2
    inputs = numbers + categories * config.embedding
    match config.family:
        case "logistic" | "svm" | "rff_svm":
            layers = numbers + 1
            layers += config.random_features if config.family == "rff_svm" else 0
            layers += 2 if config.family in MARGIN_FAMILIES else 0
        case "naive_bayes":
            layers = 6 * numbers
        case "knn":
            layers = config.window * (numbers + categories + 1) + 2
        case "hoeffding_tree":
            layers = 1 + (_NODE + _OBSERVED * (numbers + categories)) * (2 * config.leaves - 1)
        case "adaptive_random_forest":
            layers = config.trees * (1 + 2 * _NODE * (2 * config.leaves - 1))
        case "two_tower":
            first, *rest = config.hidden or (config.embedding,)
            after = sum((before + 1) * width for before, width in pairwise((first, *rest)))
            layers = numbers + 1 + inputs * first + 2 * (first + after)
        case _:
            layers = _net_size(config, numbers, inputs)
    return _HEADER + 4 * (statistics + layers)


def _net_size(config: ModelConfig, numbers: int, inputs: int) -> int:
    """Weights of a deep net, what stands beside it, and the output layer over both."""
    widths = (inputs, *config.hidden)
    deep = sum((before + 1) * after for before, after in pairwise(widths))
    beside, wide = {
        "mlp": (0, 0),
        "dcn": (_CROSS_LAYERS * inputs * (inputs + 1), inputs),
        "deepfm": (numbers * config.embedding, numbers),
    }[config.family]
    return deep + beside + wide + widths[-1] + 1

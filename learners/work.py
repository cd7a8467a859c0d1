"""What a model costs to score and to learn rows: an estimate by family, the same on every machine.

It only says how work is shared between models, so it must not depend on how busy a machine is: a step that is taken or
not because of a clock could not be repeated. Measured on one core, each family with its usual sizes (docs/log.md).
"""

from learners.lesson import is_compiled
from learners.models import Counter
from learners.trainer import Trainer

# family -> microseconds of a step whatever its rows, and of a row
COSTS: dict[str, tuple[float, float]] = {
    "dcn": (1_800.0, 4.0),
    "deepfm": (2_300.0, 9.0),
    "mlp": (2_000.0, 6.0),
    "logistic": (1_500.0, 3.0),
    "two_tower": (2_300.0, 6.0),
    "svm": (1_700.0, 3.0),
    "rff_svm": (3_500.0, 10.0),
    "rnn": (3_100.0, 11.0),
    "gru": (3_500.0, 14.0),
    "lstm": (4_100.0, 10.0),
    "transformer": (5_600.0, 41.0),
    "text_cnn": (4_800.0, 41.0),
    "text_rnn_cnn": (9_500.0, 77.0),
    "image_cnn": (2_100.0, 85.0),
    "naive_bayes": (1_000.0, 3.0),
    "knn": (1_400.0, 21.0),
    "hoeffding_tree": (1_200.0, 2.0),
    "adaptive_random_forest": (1_100.0, 5.0),
}
COMPILED = (300.0, 10.0)  # of a net whose steps are compiled: a call, and a row
WEIGHT = 0.00015  # of a row, for each weight of a dense layer
USUAL_WINDOW, USUAL_TREES = 2_000, 10  # knn and forests take longer in proportion to these


def work_us(trainer: Trainer, rows: int) -> float:
    """Microseconds that a batch of `rows` takes, to score it and learn it once."""
    model, config = trainer.model, trainer.config
    step, row = COSTS[config.family]
    steps = -(-rows // config.batch_size)
    if isinstance(model, Counter):
        grown = {"knn": config.window / USUAL_WINDOW, "adaptive_random_forest": config.trees / USUAL_TREES}
        return steps * step + rows * row * grown.get(config.family, 1.0)
    if is_compiled(model, config):
        (step, row), steps = COMPILED, 1
    weights = sum(weight.numel() for weight in model.parameters())
    return (steps * step + rows * (row + weights * WEIGHT)) * (1 + config.replay)

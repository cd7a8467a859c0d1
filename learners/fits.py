"""Which settings of a model fit what a task predicts. Imports no torch: a task file is checked with it."""

from learners.batch import COUNTING_FAMILIES, GRADIENT_FAMILIES, MARGIN_FAMILIES, ModelConfig
from learners.target import Target

VALUE_FAMILIES = tuple(family for family in GRADIENT_FAMILIES if family not in MARGIN_FAMILIES)
CLASS_FAMILIES = tuple(family for family in VALUE_FAMILIES if family not in ("deepfm", "two_tower"))
_FITTING = {
    "regression": (VALUE_FAMILIES, ("auto", "mse", "mae", "huber")),
    "multiclass": (CLASS_FAMILIES, ("auto", "focal")),
}
_LARGEST_WEIGHT = 1e6


def misfit(config: ModelConfig, target: Target) -> tuple[str, str, str] | None:
    """The setting that does not fit, what is wrong with it, and what would be right; None if all do."""
    if config.class_weights and target.kind != "multiclass":
        why = f"class_weights has no meaning in a {target.kind} task"
        return "class_weights", why, "leave it out" + ("" if target.is_value else "; see positive_weight")
    if target.kind == "binary":
        return None
    families, losses = _FITTING[target.kind]
    if config.family not in families:
        return (
            "family",
            f"{_why(config.family)} and cannot learn a {target.kind} task",
            f"use one of {', '.join(families)}",
        )
    if config.loss not in losses:
        why = f"loss {config.loss!r} does not go with a {target.kind} task"
        return "loss", why, f"use one of {', '.join(losses)}"
    if config.positive_weight != 1.0:
        why = f"positive_weight has no meaning in a {target.kind} task, which has no positives"
        return "positive_weight", why, "leave it out" + ("; see class_weights" if target.classes else "")
    return _of_classes(config, target) if target.classes else None


def _of_classes(config: ModelConfig, target: Target) -> tuple[str, str, str] | None:
    if config.recent_labels:
        return "recent_labels", "recent_labels has no meaning where labels are names", "leave it out"
    weights, count = config.class_weights, len(target.classes)
    if weights and (len(weights) != count or not all(0.0 < weight <= _LARGEST_WEIGHT for weight in weights)):
        fix = f"give {count}, in the order of task.classes, each above 0 and at most {_LARGEST_WEIGHT:g}"
        return "class_weights", f"class_weights is {list(weights)}", fix
    return None


def _why(family: str) -> str:
    if family in COUNTING_FAMILIES:
        return f"family {family!r} counts zeros and ones"
    if family in MARGIN_FAMILIES:
        return f"family {family!r} learns which side a row is on"
    return f"family {family!r} says the products that it learns in one number"

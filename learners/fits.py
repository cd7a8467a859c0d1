"""Which settings of a model fit what a task predicts. Imports no torch: a task file is checked with it."""

from learners.batch import FAMILIES, MARGIN_FAMILIES, ModelConfig
from learners.target import Target

# What a family lacks for a kind of task, in words.
_LACKS = {
    "regression": {"naive_bayes": "counts classes"},
    "multiclass": dict.fromkeys(("deepfm", "two_tower"), "says the products that it learns in one number"),
}
VALUE_FAMILIES = tuple(family for family in FAMILIES if family not in _LACKS["regression"])
CLASS_FAMILIES = tuple(family for family in FAMILIES if family not in _LACKS["multiclass"])
_FITTING = {
    "regression": (VALUE_FAMILIES, ("auto", "mse", "mae", "huber"), ("auto",)),
    "multiclass": (CLASS_FAMILIES, ("auto", "focal"), ("auto", "hinge")),
}
_LARGEST_WEIGHT = 1e6


def misfit(config: ModelConfig, target: Target) -> tuple[str, str, str] | None:
    """The setting that does not fit, what is wrong with it, and what would be right; None if all do."""
    if config.class_weights and target.kind != "multiclass":
        why = f"class_weights has no meaning in a {target.kind} task"
        return "class_weights", why, "leave it out" + ("" if target.is_value else "; see positive_weight")
    if target.kind == "binary":
        return None
    families, losses, of_margins = _FITTING[target.kind]
    if config.family not in families:
        lack = _LACKS[target.kind][config.family]
        why = f"family {config.family!r} {lack} and cannot learn a {target.kind} task"
        return "family", why, f"use one of {', '.join(families)}"
    losses = of_margins if config.family in MARGIN_FAMILIES else losses
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

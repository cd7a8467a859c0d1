"""Which settings of a model fit what a task predicts. Imports no torch: a task file is checked with it."""

from learners.batch import COUNTING_FAMILIES, GRADIENT_FAMILIES, MARGIN_FAMILIES, ModelConfig
from learners.target import Target

VALUE_FAMILIES = tuple(family for family in GRADIENT_FAMILIES if family not in MARGIN_FAMILIES)
VALUE_LOSSES = ("auto", "mse", "mae", "huber")


def misfit(config: ModelConfig, target: Target) -> tuple[str, str, str] | None:
    """The setting that does not fit, what is wrong with it, and what would be right; None if all do."""
    if target.kind == "binary":
        return None
    if config.family not in VALUE_FAMILIES:
        how = (
            "counts zeros and ones" if config.family in COUNTING_FAMILIES else "learns which side a row is on"
        )
        why = f"family {config.family!r} {how} and cannot learn a {target.kind} task"
        return "family", why, f"use one of {', '.join(VALUE_FAMILIES)}"
    if config.loss not in VALUE_LOSSES:
        why = f"loss {config.loss!r} is for labels of 0 and 1, and this is a {target.kind} task"
        return "loss", why, f"use one of {', '.join(VALUE_LOSSES)}"
    if config.positive_weight != 1.0:
        why = f"positive_weight has no meaning in a {target.kind} task, which has no positives"
        return "positive_weight", why, "leave it out"
    return None

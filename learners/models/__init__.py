"""Model families by name. Every family is an `EventModel`: the same inputs, the same kind of table."""

from importlib import import_module

import torch

from infra.errors import UserError
from learners.batch import SEQUENCE_FAMILIES, TEXT_FAMILIES, ModelConfig, Schema
from learners.fits import misfit
from learners.models.base import EventModel
from learners.models.counting import Counter
from learners.models.net import Net

# By name, so that who serves a net does not wait for the compiler of the trees.
_FAMILIES = {
    "dcn": "factorization.CrossNet",
    "deepfm": "factorization.DeepFM",
    "logistic": "linear.Logistic",
    "mlp": "factorization.Perceptron",
    "two_tower": "factorization.TwoTower",
    "svm": "linear.LinearSVM",
    "rff_svm": "linear.KernelSVM",
    **dict.fromkeys(SEQUENCE_FAMILIES, "sequence.SequenceNet"),
    **dict.fromkeys(TEXT_FAMILIES, "text.TextNet"),
    "image_cnn": "image.ImageNet",
    "naive_bayes": "counting.NaiveBayes",
    "knn": "counting.Neighbours",
    "hoeffding_tree": "forest.HoeffdingTree",
    "adaptive_random_forest": "forest.AdaptiveRandomForest",
}


def build_model(
    schema: Schema, config: ModelConfig, seed: int, device: torch.device | None = None
) -> Net | Counter:
    """A fresh model, a pure function of its arguments, on `device` (the CPU if None; a `Counter` always).

    Raises UserError if the schema is empty or lacks a column that the settings name, or if these settings cannot
    learn what it predicts.
    """
    if wrong := misfit(config, schema.target):
        raise UserError(f"model {wrong[1]}", wrong[2])
    module, name = _FAMILIES[config.family].split(".")
    model: Net | Counter = getattr(import_module(f"learners.models.{module}"), name)(schema, config, seed)
    stays = device is None or device.type == "cpu" or isinstance(model, Counter)
    return model if stays else model.to(device)


__all__ = ["Counter", "EventModel", "Net", "build_model"]

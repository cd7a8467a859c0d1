"""What a step of the gradient families makes smaller: the mean loss of logits [n] against labels 0 or 1 [n], of logits
[n, K] against numbers of classes [n], or of values [n] against labels [n], both in standard deviations of the labels.

Each row counts with its weight [n], or all alike without: the mean is over rows, not over weights, so that a row of
weight 2 moves the model as two rows of one step would.

A score is the sigmoid of the logit whatever the loss. Only `bce` without a class weight makes it a calibrated
probability: the others shift it (`focal` towards the middle, a class weight towards that class).
"""

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from learners.batch import MARGIN_FAMILIES, ModelConfig
from learners.target import BINARY, Target

Loss = Callable[[Tensor, Tensor], Tensor]
MeanLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

HUBER_DELTA = 0.25  # on the scale of a probability: errors above count linearly
VALUE_DELTA = 1.0  # the same of a value, in standard deviations of the labels
INSENSITIVE = 0.1  # of a support vector machine, in standard deviations of the labels
SMALLEST_BASE = 1e-6  # (1 - p)^gamma has an infinite slope at 0 where gamma is below 1


def bce(logits: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy [n], in nats."""
    return functional.binary_cross_entropy_with_logits(logits, label, reduction="none")


def focal(logits: Tensor, label: Tensor, gamma: float) -> Tensor:
    """Lin et al. 2017: cross-entropy times (1 - p)^gamma, where p is the probability of the true class."""
    entropy = bce(logits, label)
    return entropy * (1.0 - torch.exp(-entropy)).clamp_min(SMALLEST_BASE).pow(gamma)


def hinge(margins: Tensor, label: Tensor) -> Tensor:
    """Cortes & Vapnik 1995: zero from a margin of 1 on the right side."""
    return torch.clamp_min(1.0 - (2.0 * label - 1.0) * margins, 0.0)


def hinge_of_classes(margins: Tensor, label: Tensor) -> Tensor:
    """Crammer & Singer 2001: zero where the margin [n, K] of the label's class is 1 above every other one."""
    own = functional.one_hot(label.long(), margins.shape[1]).bool()
    other = margins.masked_fill(own, -torch.inf).amax(1)
    return torch.clamp_min(1.0 + other - margins[own], 0.0)


def insensitive(value: Tensor, label: Tensor) -> Tensor:
    """Vapnik 1995: an error of up to `INSENSITIVE` costs nothing, beyond it counts linearly."""
    return torch.clamp_min(torch.abs(value - label) - INSENSITIVE, 0.0)


def mse(logits: Tensor, label: Tensor) -> Tensor:
    """Squared error of the probability (the Brier score)."""
    return torch.square(torch.sigmoid(logits) - label)


def mae(logits: Tensor, label: Tensor) -> Tensor:
    """Absolute error of the probability: a wrong label pulls no harder than any other."""
    return torch.abs(torch.sigmoid(logits) - label)


def huber(logits: Tensor, label: Tensor) -> Tensor:
    """Huber 1964, of the probability: squared up to `HUBER_DELTA`, linear beyond."""
    return functional.huber_loss(torch.sigmoid(logits), label, reduction="none", delta=HUBER_DELTA)


def entropy_of_classes(logits: Tensor, label: Tensor, gamma: float = 0.0) -> Tensor:
    """Cross-entropy [n] of logits [n, K] against numbers of classes [n]; with `gamma` above 0 focal, as of two."""
    losses = functional.cross_entropy(logits, label.long(), reduction="none")
    if gamma:
        losses = losses * (1.0 - torch.exp(-losses)).clamp_min(SMALLEST_BASE).pow(gamma)
    return losses


def of_classes(
    loss: Loss, weights: Sequence[float], logits: Tensor, label: Tensor, weight: Tensor | None
) -> Tensor:
    """The mean loss of logits [n, K] against numbers of classes [n], each class with its weight, if any."""
    losses = loss(logits, label)
    if weights:
        losses = losses * _constant(tuple(weights), losses.device)[label.long()]
    return mean(losses, weight)


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Once on a device: a step that is captured may not wait for the host's memory."""
    return torch.tensor(values, device=device)


def of_values(name: str) -> MeanLoss:
    """The mean loss of values [n] by name: "mse", "mae", "huber" or "insensitive". KeyError for another one."""
    each: dict[str, Loss] = {
        "mse": partial(functional.mse_loss, reduction="none"),
        "mae": partial(functional.l1_loss, reduction="none"),
        "huber": partial(functional.huber_loss, reduction="none", delta=VALUE_DELTA),
        "insensitive": insensitive,
    }
    loss = each[name]
    return lambda value, label, weight: mean(loss(value, label), weight)


def loss_of(config: ModelConfig, target: Target = BINARY) -> MeanLoss:
    """The mean loss that the settings ask for, positive rows counting `positive_weight` times."""
    name, margin = config.loss, config.family in MARGIN_FAMILIES
    if target.is_value:
        return of_values(("insensitive" if margin else "mse") if name == "auto" else name)
    if target.classes:
        gamma = config.focal_gamma if name == "focal" else 0.0
        loss = hinge_of_classes if margin else partial(entropy_of_classes, gamma=gamma)
        return partial(of_classes, loss, config.class_weights)
    if name == "auto":
        name = "hinge" if margin else "bce"
    if name == "bce" and config.positive_weight == 1.0:
        return functional.binary_cross_entropy_with_logits
    each: dict[str, Loss] = {
        "bce": bce,
        "focal": partial(focal, gamma=config.focal_gamma),
        "hinge": hinge,
        "mse": mse,
        "mae": mae,
        "huber": huber,
    }
    return partial(_weighted_mean, each[name], config.positive_weight)


def _weighted_mean(
    loss: Loss, positive_weight: float, logits: Tensor, label: Tensor, weight: Tensor | None
) -> Tensor:
    return mean(loss(logits, label) * (1.0 + (positive_weight - 1.0) * label), weight)


def mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of losses [n], each counted with its weight [n] if there are any."""
    return (losses if weight is None else losses * weight).mean()

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from learners.batch import LOSSES, ModelConfig
from learners.losses import HUBER_DELTA, loss_of
from tests.learner_rows import auc, rows, trainer_of

LOGITS = torch.tensor([-3.0, -0.5, 0.0, 0.4, 2.0, 7.0])
LABEL = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
P = torch.sigmoid(LOGITS)
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 1.5, 1.0, 0.1])
TRUE = torch.where(LABEL == 1, P, 1 - P)  # probability of what happened


def value(name: str, *, weighted: bool = False, **settings: object) -> torch.Tensor:
    family = "svm" if name == "hinge" else "dcn"
    loss = loss_of(ModelConfig.from_dict({"family": family, "loss": name} | settings))
    return loss(LOGITS, LABEL, WEIGHT if weighted else None)


def test_every_loss_is_its_formula():
    error = (P - LABEL).abs()
    huber = torch.where(error <= HUBER_DELTA, error**2 / 2, HUBER_DELTA * (error - HUBER_DELTA / 2))
    expected = {
        "bce": -TRUE.log(),
        "focal": -((1 - TRUE) ** 2) * TRUE.log(),
        "hinge": torch.clamp(1 - (2 * LABEL - 1) * LOGITS, min=0),
        "mse": error**2,
        "mae": error,
        "huber": huber,
    }
    assert {*expected, "auto"} == set(LOSSES)
    for name, each in expected.items():
        torch.testing.assert_close(value(name), each.mean(), rtol=1e-4, atol=1e-6)
        weighted = (each * torch.where(LABEL == 1, 3.0, 1.0)).mean()
        torch.testing.assert_close(value(name, positive_weight=3.0), weighted, rtol=1e-4, atol=1e-6)
        of_rows = (each * WEIGHT).mean()
        torch.testing.assert_close(value(name, weighted=True), of_rows, rtol=1e-4, atol=1e-6)


def test_auto_is_cross_entropy_or_hinge():
    assert torch.equal(value("auto"), functional.binary_cross_entropy_with_logits(LOGITS, LABEL))
    assert torch.equal(value("auto", family="rff_svm"), value("hinge"))


def test_focal_without_focus_is_cross_entropy_and_its_slope_is_finite_everywhere():
    torch.testing.assert_close(value("focal", focal_gamma=0), value("bce"))
    for gamma in (0.5, 2.0):
        logits = torch.tensor([-90.0, 0.0, 90.0], requires_grad=True)
        config = ModelConfig(loss="focal", focal_gamma=gamma)
        loss_of(config)(logits, torch.tensor([0.0, 1.0, 1.0]), None).backward()
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("auto", "hinge")])
def test_a_net_learns_by_any_loss_and_its_scores_stay_probabilities(name):
    trainer, unseen = trainer_of("mlp", loss=name), rows(500, seed=99)
    trainer.train(rows(3000))
    scores = trainer.score(unseen.numbers, unseen.categories)
    assert auc(scores, unseen.label) > 0.95
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_no_loss_learns_from_a_label_that_is_not_finite(name, poison):
    trainer = trainer_of("svm" if name == "hinge" else "logistic", loss=name)
    batch = rows(32)
    batch.label[5] = poison
    trainer.train(batch)
    assert (trainer.rejected_steps, trainer.steps) == (1, 0)


def test_a_class_weight_raises_scores():
    plain, heavy = (trainer_of("logistic", positive_weight=weight) for weight in (1.0, 5.0))
    for each in (plain, heavy):
        each.train(rows(2000))
    batch = rows(500, 9)
    assert np.mean(heavy.score(batch.numbers, batch.categories)) > 0.05 + np.mean(
        plain.score(batch.numbers, batch.categories)
    )

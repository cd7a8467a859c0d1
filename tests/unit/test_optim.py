"""Each rule against torch.optim where torch has it, else against its formula; rows are moved as in a dense step."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from learners.batch import OPTIMISERS, ModelConfig
from learners.optim import Rule, Touch, rule_of
from tests.learner_rows import optimiser_of, rows, trainer_of

Reference = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
CASES: dict[str, tuple[dict[str, Any], Reference]] = {
    "sgd": ({"optimiser": "sgd"}, lambda w: torch.optim.SGD(w, lr=0.1)),
    "sgd, decay": (
        {"optimiser": "sgd", "weight_decay": 0.2},
        lambda w: torch.optim.SGD(w, lr=0.1, weight_decay=0.2),
    ),
    "momentum": (
        {"optimiser": "sgd", "momentum": 0.9},
        lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9),
    ),
    "nesterov": (
        {"optimiser": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "adagrad": (
        {"optimiser": "adagrad", "weight_decay": 0.1},
        lambda w: torch.optim.Adagrad(w, lr=0.1, weight_decay=0.1),
    ),
    "rmsprop": ({"optimiser": "rmsprop"}, lambda w: torch.optim.RMSprop(w, lr=0.1)),
    "adam": ({"optimiser": "adam"}, lambda w: torch.optim.Adam(w, lr=0.1)),
    "adam, decay": (
        {"optimiser": "adam", "weight_decay": 0.3},
        lambda w: torch.optim.Adam(w, lr=0.1, weight_decay=0.3),
    ),
    "adamw": (
        {"optimiser": "adamw", "weight_decay": 0.3},
        lambda w: torch.optim.AdamW(w, lr=0.1, weight_decay=0.3),
    ),
}


def walk(config: ModelConfig, value: Tensor, gradients: list[Tensor], steps_shape: tuple[int, ...]) -> Tensor:
    """The value after all gradients, by the rule of the settings."""
    rule = rule_of(config)
    memory = rule.start(value)
    for step, gradient in enumerate(gradients, 1):
        steps = torch.full(steps_shape, float(step))
        touch = Touch(value, gradient.clone(), memory, steps, torch.tensor(config.learning_rate))
        value, memory = rule.step(touch, config.weight_decay)
    return value


def steps_of(*shape: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), [
        torch.randn(shape, generator=generator) for _ in range(20)
    ]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(5,), (4, 3)])
def test_a_rule_agrees_with_torch(case, shape):
    settings, reference = CASES[case]
    start, gradients = steps_of(*shape)
    weight = torch.nn.Parameter(start.clone())
    optimiser = reference([weight])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimiser.step()
    steps_shape = (1,) if len(shape) == 1 else (shape[0], 1)
    moved = walk(ModelConfig(learning_rate=0.1, **settings), start, gradients, steps_shape)
    torch.testing.assert_close(moved, weight.data)


def test_rowwise_adagrad_keeps_one_number_a_row_and_is_adagrad_where_a_row_is_one_number():
    config = ModelConfig(optimiser="rowwise_adagrad", learning_rate=0.1)
    start, gradients = steps_of(4, 3)
    assert [memory.shape for memory in rule_of(config).start(start)] == [(4, 1)]
    value, total = start.clone(), torch.zeros(4, 1)
    for gradient in gradients:
        total = total + gradient.square().mean(1, keepdim=True)
        value = value - 0.1 * gradient / (total.sqrt() + 1e-10)
    torch.testing.assert_close(walk(config, start, gradients, (4, 1)), value)
    narrow, adagrad = steps_of(4, 1), ModelConfig(optimiser="adagrad", learning_rate=0.1)
    torch.testing.assert_close(walk(config, *narrow, (4, 1)), walk(adagrad, *narrow, (4, 1)))


def published_ftrl(gradients: list[float], alpha: float, l1: float, l2: float) -> float:
    """Algorithm 1 of McMahan et al. 2013 with β = 1, for one weight, word by word."""
    z = n = w = 0.0
    for g in gradients:
        sigma = (math.sqrt(n + g * g) - math.sqrt(n)) / alpha
        z += g - sigma * w
        n += g * g
        w = 0.0
        if abs(z) > l1:
            w = -(z - math.copysign(l1, z)) / ((1.0 + math.sqrt(n)) / alpha + l2)
    return w


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (1.5, 0.0), (0.0, 2.0), (0.7, 0.3)])
def test_ftrl_is_the_published_algorithm(l1, l2):
    config = ModelConfig(optimiser="ftrl", learning_rate=0.3, l1=l1, l2=l2)
    _, gradients = steps_of(4, 3)
    moved = walk(config, torch.zeros(4, 3), gradients, (4, 1))
    for row in range(4):
        for column in range(3):
            series = [gradient[row, column].item() for gradient in gradients]
            expected = published_ftrl(series, 0.3, l1, l2)
            assert moved[row, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_ftrl_does_not_wipe_out_first_weights_and_zeroes_those_without_a_say():
    config = ModelConfig(optimiser="ftrl", learning_rate=0.3, l1=0.5)
    start = torch.tensor([[0.04, -0.03]])
    torch.testing.assert_close(walk(config, start, [torch.zeros(1, 2)], (1, 1)), start)
    trainer = trainer_of("logistic", "ftrl", l1=0.3)
    trainer.train(rows(2000))
    weights = trainer.model.table[trainer.touched]
    assert 0.1 < (weights == 0).float().mean() < 1.0


def test_a_scheduled_rate_scales_the_step_and_leaves_the_memory_alone():
    value, gradient = torch.ones(3), torch.tensor([0.1, -0.2, 0.3])
    for optimiser in OPTIMISERS:
        rule: Rule = rule_of(ModelConfig(optimiser=optimiser, learning_rate=0.1))
        moved = []
        for rate in (0.1, 0.05):
            touch = Touch(value, gradient, rule.start(value), torch.ones(1), torch.tensor(rate))
            after, memory = rule.step(touch, 0.0)
            moved.append((after - value, memory))
        (whole, first), (half, second) = moved
        torch.testing.assert_close(half, whole if optimiser == "ftrl" else whole / 2)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_two_steps_on_a_row_are_two_steps_whatever_came_between():
    """A table row that is touched in every other step has the same fate as one that is always alone."""
    for optimiser in OPTIMISERS:
        lonely, busy = (trainer_of("logistic", optimiser, clip_norm=1e9) for _ in range(2))
        first, other = torch.tensor([3]), torch.tensor([9])
        for trainer, between in ((lonely, False), (busy, True)):
            step = optimiser_of(trainer)
            zero = torch.zeros_like(step.dense)
            for index in [first, *([other] if between else []), first]:
                row = trainer.model.table.index_select(0, index)
                step.accept(
                    step.propose(torch.tensor(0.5), (zero.clone(), torch.full_like(row, 0.3)), index, row)
                )
        assert torch.equal(lonely.model.table[3], busy.model.table[3])
        assert lonely.model.table[9].item() == 0.0 != busy.model.table[9].item()

"""Hidden units that are made new: which, how many, what that changes, and that it goes on as if it had not stopped."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import UserError
from learners.batch import ModelConfig
from learners.compiled import CompiledLesson
from learners.models.net import Net
from learners.renewal import EVERY, MATURE, Renewal, hidden_layers
from learners.trainer import Trainer
from tests.learner_rows import RICH, contents, log_loss, optimiser_of, rows, trainer_of

STEP = 32  # rows of a step, see tests.learner_rows
UNSEEN = rows(500, 99)


def renewal_of(trainer: Trainer) -> Renewal:
    assert trainer.renewal is not None
    return trainer.renewal


def layers_of(trainer: Trainer) -> Any:
    assert isinstance(trainer.model, Net)
    return hidden_layers(trainer.model)


@torch.no_grad()
def switch_off(trainer: Trainer, unit: int) -> None:
    """A unit of the first hidden layer that is 0 for every row, and stays so: no gradient reaches it."""
    first = layers_of(trainer)[0].layer
    first.weight[unit], first.bias[unit] = 0.0, -100.0


@pytest.mark.parametrize(
    "family", ["mlp", "dcn", "deepfm", "two_tower", "gru", "transformer", "text_cnn", "image_cnn"]
)
def test_the_hidden_layers_of_every_net_are_found(family: str) -> None:
    trainer = trainer_of(family, schema=RICH, renew=0.01)
    found = layers_of(trainer)
    widths = [len(each.layer.bias) for each in found]
    assert widths == (
        [16, 16] if family == "two_tower" else [16, 8]
    )  # each tower's last layer is no hidden one
    for each, width in zip(found, widths, strict=True):
        assert each.reader.weight.shape[1] >= width
    trainer.train(rows(STEP * (MATURE + 5 * EVERY), schema=RICH))
    assert renewal_of(trainer).renewed > 0
    assert np.isfinite(trainer.score(rows(9, schema=RICH).numbers, rows(9, schema=RICH).categories)).all()


def test_a_unit_that_is_off_is_the_first_to_be_made_new_and_learns_again() -> None:
    trainer = trainer_of("mlp", renew=1.5 / 16 / EVERY)  # of 16 units, one at each look
    trainer.train(rows(STEP))
    switch_off(trainer, 5)
    first = layers_of(trainer)[0].layer
    before = first.weight.detach().clone()
    trainer.train(rows(STEP * (MATURE - 1 + EVERY), 2))
    assert renewal_of(trainer).renewed >= 1
    assert float(first.bias[5].detach()) > -1
    assert float(first.weight[5].detach().abs().max()) > 0.01
    assert not torch.equal(before[5], first.weight[5])


def test_a_new_unit_says_nothing_yet_and_the_optimiser_knows_nothing_of_it() -> None:
    trainer = trainer_of("mlp", renew=0.1)
    trainer.train(rows(STEP * (MATURE - 1)))  # the next look is the first at which units are old enough
    switch_off(trainer, 3)
    scores = trainer.score(UNSEEN.numbers, UNSEEN.categories)
    with torch.no_grad():
        renewal_of(trainer)._renew(0, 3)
    np.testing.assert_array_equal(trainer.score(UNSEEN.numbers, UNSEEN.categories), scores)
    first, reader = layers_of(trainer)[0].layer, layers_of(trainer)[0].reader
    assert torch.equal(reader.weight[:, 3], torch.zeros(8))
    inputs = first.weight.shape[1]
    for memory in optimiser_of(trainer).dense_memory:
        assert not memory[3 * inputs : 4 * inputs].any()
        assert memory[2 * inputs : 3 * inputs].any()


@pytest.mark.parametrize("rate", [0.0005, 0.005, 0.05])
def test_as_many_units_are_made_new_as_the_rate_says(rate: float) -> None:
    trainer, steps = trainer_of("mlp", renew=rate), 1_000
    trainer.train(rows(STEP * steps))
    # A new unit is left alone for a while: n is rate times (24 units times the steps, less n times MATURE).
    units = 24 * rate * (steps - MATURE)
    expected = units / (1.0 + rate * MATURE)
    assert expected * 0.8 - 2 <= renewal_of(trainer).renewed <= units + 1


@pytest.mark.parametrize("family", ["mlp", "two_tower"])  # one learns in compiled steps, one through torch
def test_it_goes_on_bit_for_bit_from_a_saved_state(family: str) -> None:
    first, second = (trainer_of(family, renew=0.02) for _ in range(2))
    assert isinstance(first.lesson, CompiledLesson) == (family == "mlp")
    first.train(rows(STEP * (MATURE + 25)))
    second.load(first.state())
    for each in (first, second):
        each.train(rows(STEP * 60, 3))
    assert contents(first) == contents(second)
    assert renewal_of(first).renewed == renewal_of(second).renewed > 0


def test_steps_are_the_same_however_rows_are_handed_over() -> None:
    whole, parts = (trainer_of("mlp", renew=0.02) for _ in range(2))
    batch = rows(STEP * 120)
    whole.train(batch)
    for start in range(0, len(batch), STEP * 7):
        parts.train(batch.slice(start, min(start + STEP * 7, len(batch))))
    assert contents(whole) == contents(parts)


def test_a_net_half_of_whose_units_are_off_recovers() -> None:
    losses = {}
    for renew in (0.0, 0.02):
        trainer = trainer_of("mlp", renew=renew, hidden=(16,))
        for unit in range(15):
            switch_off(trainer, unit)
        batch = rows(STEP * 400)
        # The rule is a product, which no linear part and no single unit can say.
        label = (batch.numbers[:, 0] * batch.numbers[:, 1] > 0).astype(np.float32)
        trainer.train(replace(batch, label=label))
        truth = (UNSEEN.numbers[:, 0] * UNSEEN.numbers[:, 1] > 0).astype(np.float32)
        losses[renew] = log_loss(trainer.score(UNSEEN.numbers, UNSEEN.categories), truth)
    assert losses[0.02] < 0.8 * losses[0.0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"renew": 0.01, "optimiser": "ftrl"}, "renew does not go with ftrl"),
        ({"renew": 0.01, "hidden": ()}, "hidden is"),
        ({"renew": 0.01, "ewc": 1.0}, "do not go together"),
        ({"renew": 0.2}, "renew is 0.2"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ModelConfig(**settings)

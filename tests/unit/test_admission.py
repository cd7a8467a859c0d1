"""What the checks of a model look at, one by one; `test_slot.py` and `test_poisoned.py` have what gets past none."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from learners import weights
from learners.admission import LARGEST_WEIGHT, Admission, BadUpdate, golden_rows
from learners.slot import Slot, encode_full
from learners.trainer import Trainer
from tests.learner_rows import CONFIG, SCHEMA, rows


def trained() -> Trainer:
    trainer = Trainer(SCHEMA, CONFIG, 7, "L2", "cpu")
    trainer.train(rows(64))
    return trainer


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("name", "limited"), [("output.weight", True), (weights.ROWS, True), ("mean", False)]
)
def test_a_weight_is_limited_and_a_running_statistic_is_not(name: str, limited: bool, sign: float) -> None:
    trainer = trained()
    tensors = trainer.full().tensors
    for size, refused in ((1.0, False), (2.0, limited)):
        tensors[name].view(-1)[-1] = sign * size * LARGEST_WEIGHT
        wanted = f"{name} holds a value beyond 10000" if refused else None
        assert weights.problem(trainer.model, tensors, LARGEST_WEIGHT) == wanted
        assert weights.problem(trainer.model, tensors) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 7, 40, 99])
def test_one_value_that_is_no_number_is_seen_wherever_it_is(value: float, at: int) -> None:
    tensor = torch.linspace(-3.0, 2.0, 100)
    assert weights.largest(tensor) == 3.0
    assert weights.largest(tensor[:0]) == 0.0
    tensor[at] = value
    assert not weights.largest(tensor) < torch.inf


def apart(*times: float) -> Callable[[], float]:
    """A clock by which the first piece of work takes times[0] seconds, and so on; StopIteration for one more."""
    ticks = [moment for begin, took in enumerate(times) for moment in (10.0 * begin, 10.0 * begin + took)]
    return partial(next, iter(ticks))


def timed(*times: float) -> Slot:
    slot = Slot(SCHEMA, CONFIG, 7, "cpu", Admission(budget_ms=100.0, clock=apart(*times)))
    slot.load_full(*encode_full(trained(), event_ms=1, created_ms=1))
    return slot


@pytest.mark.parametrize("times", [(0.01,), (2.0, 3.0, 2.0, 0.01)])
def test_a_model_is_timed_again_only_after_a_time_beyond_the_budget(times: tuple[float, ...]) -> None:
    assert timed(*times).version == "L2.1"


def test_the_best_of_the_times_decides() -> None:
    with pytest.raises(BadUpdate, match=r"needs 2000\.0 ms") as caught:
        timed(4.0, 3.0, 2.0, 5.0)
    assert caught.value.step == "latency"


def test_nobody_can_change_the_golden_rows() -> None:
    for array in golden_rows(SCHEMA):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1

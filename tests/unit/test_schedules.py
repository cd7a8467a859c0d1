import json
import math
from typing import Any

import pytest

from learners.batch import SCHEDULES, ModelConfig
from learners.schedules import SMALLEST_SHARE, Schedule
from tests.learner_rows import contents, rows, trainer_of


def shares(steps: int, **settings: object) -> list[float]:
    schedule = Schedule(ModelConfig.from_dict(settings))
    found = []
    for _ in range(steps):
        found.append(schedule.share)
        schedule.advance(1.0)
    return found


def test_a_constant_rate_is_exactly_the_rate():
    assert set(shares(50)) == {1.0}


def test_the_published_curves():
    steps = shares(30, schedule="step", schedule_steps=10, schedule_factor=0.5)
    assert (steps[0], steps[9], steps[10], steps[29]) == (1.0, 1.0, 0.5, 0.25)
    cosine = shares(40, schedule="cosine", schedule_steps=20, schedule_factor=0.2)
    assert (cosine[0], cosine[10], cosine[20], cosine[39]) == pytest.approx((1.0, 0.6, 0.2, 0.2))
    root = shares(31, schedule="inverse_sqrt", schedule_steps=10)
    assert (root[0], root[10], root[30]) == pytest.approx((1.0, 1 / math.sqrt(2), 0.5))


def test_a_warm_up_rises_in_a_line_before_the_curve_begins():
    found = shares(15, schedule="step", schedule_steps=10, schedule_factor=0.5, warmup_steps=4)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert (found[13], found[14]) == (1.0, 0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_rate_ever_ends(schedule):
    settings = {"schedule": schedule, "schedule_steps": 1, "schedule_factor": 0.001}
    assert min(shares(20_000 if schedule == "inverse_sqrt" else 500, **settings)) >= SMALLEST_SHARE


def test_a_plateau_lowers_the_rate_once_for_each_period_without_a_gain():
    config = ModelConfig(schedule="plateau", schedule_steps=2, schedule_factor=0.5)
    schedule = Schedule(config)
    found = []
    for loss in (1.0, 1.0, 0.8, 0.8, 0.9, 0.9, 0.8, 0.8, 0.5, 0.5):
        schedule.advance(loss)
        found.append(schedule.share)
    assert found == [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_steps_grow_from_the_smallest_to_the_largest():
    schedule = Schedule(ModelConfig(smallest_batch=10, batch_size=64, schedule_steps=2))
    sizes = []
    for _ in range(9):
        sizes.append(schedule.batch_size)
        schedule.advance(0.0)
    assert sizes == [10, 10, 20, 20, 40, 40, 64, 64, 64]
    assert Schedule(ModelConfig(batch_size=64)).batch_size == 64


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_goes_on_after_json_and_begins_again_after_drift(schedule):
    settings = {"schedule": schedule, "schedule_steps": 3, "warmup_steps": 2, "smallest_batch": 8}
    first, second = (Schedule(ModelConfig.from_dict(settings)) for _ in range(2))
    begin = (first.share, first.batch_size)
    for step in range(20):
        first.advance(1.0 / (1 + step % 5))
    second.load(json.loads(json.dumps(first.state())))
    for step in range(20):
        assert (first.share, first.batch_size) == (second.share, second.batch_size)
        first.advance(0.5 + step)
        second.advance(0.5 + step)
    first.rewarm()
    assert (first.share, first.batch_size) == begin
    assert first.state() == Schedule(first.config).state()
    second.load({})  # of a checkpoint from before there were schedules
    assert second.steps == 40


SCHEDULED: dict[str, Any] = {
    "schedule": "plateau",
    "schedule_steps": 4,
    "warmup_steps": 3,
    "smallest_batch": 8,
}


def test_a_trainer_follows_its_schedule_and_a_checkpoint_has_it():
    trainer, other = (trainer_of("dcn", **SCHEDULED) for _ in range(2))
    trainer.train(rows(300))
    assert trainer.steps > 300 // 32  # the first steps were smaller
    assert trainer.examples == 300
    other.load(trainer.state())
    for each in (trainer, other):
        each.train(rows(200, 1))
    assert contents(other) == contents(trainer)
    trainer.rewarm()
    assert contents(other) != contents(trainer)
    before = trainer.steps
    trainer.train(rows(32, 2))
    assert trainer.steps == before + 4


def test_a_rejected_step_does_not_move_the_schedule():
    trainer = trainer_of("dcn", **SCHEDULED)
    trainer.train(rows(64))
    before = contents(trainer)
    bad = rows(8, 1)
    bad.label[3] = math.nan
    trainer.train(bad)
    assert contents(trainer) == before
    assert trainer.rejected_steps == 1

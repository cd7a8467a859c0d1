"""Populations of settings: drawn, halved within a budget, the winner on trial; the same after a restart."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from learners.arena import Arena
from learners.batch import Batch, ModelConfig, Schema
from learners.budget import ArenaConfig
from learners.challenger import Decision, Now
from learners.drift import DriftConfig
from learners.entrants import MOST
from learners.recipe import Recipe
from learners.space import TuningConfig
from learners.work import work_us

SCHEMA = Schema(("a", "b", "c"), (), "t")
SLOW = ModelConfig(family="logistic", batch_size=64, learning_rate=0.0003)
DRIFT = DriftConfig(cooldown=1_000, max_events=6_000)
SPACE: dict[str, Any] = {"learning_rate": {"min": 0.0001, "max": 0.1}}
TUNING = TuningConfig(population=6, rungs=2, events=300, budget=0.75, space=SPACE)
FAMILIES = replace(TUNING, space={"family": ["logistic", "naive_bayes", "mlp"], "hidden": [[4], [8]]})
ROWS = 6_000
TUNINGS = {"rates": TUNING, "families": FAMILIES}
RECIPE = Recipe(SCHEMA, SLOW, SLOW, DRIFT, 3, tuning=TUNING)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def stream(rows: int = ROWS) -> Batch:
    """A steady rule that a slow champion takes long to learn."""
    random = np.random.default_rng(1)
    numbers = random.normal(size=(rows, 3)).astype(np.float32)
    label = (random.random(rows) < 1 / (1 + np.exp(-2 * numbers.sum(axis=1)))).astype(np.float32)
    moments, unserved = np.arange(rows, dtype=np.int64), np.full(rows, np.nan, np.float32)
    none = np.zeros((rows, 0), np.int64)
    return Batch([f"e{i}" for i in range(rows)], moments, moments, numbers, none, unserved, label)


def decisions(arena: Arena, batch: Batch) -> list[Decision]:
    return [event for event in arena.observe(batch, created_ms=0) if isinstance(event, Decision)]


@cache
def ran(policy: Any = "better", space: str = "rates") -> tuple[Arena, list[Decision]]:
    recipe = replace(RECIPE, drift=replace(DRIFT, policy=policy), tuning=TUNINGS[space])
    arena = recipe.arena()
    return arena, decisions(arena, stream())


def test_a_population_is_spread_over_the_space_and_begins_with_the_champions_settings() -> None:
    more: dict[str, Any] = {"optimiser": ["adam", "sgd"], "batch_size": {"min": 1, "max": 64}}
    config = TuningConfig(population=9, space=SPACE | more)
    made = config.draw(SLOW, 7, 1)
    assert (made[0], len(made), len(set(made))) == (SLOW, 9, 9)
    rates = sorted(each.learning_rate for each in made[1:])
    bounds = np.geomspace(0.0001, 0.1, 9)
    assert all(low <= rate <= high for low, rate, high in zip(bounds, rates, bounds[1:], strict=False))
    assert [each.optimiser for each in made[1:]].count("sgd") == 4
    assert all(1 <= each.batch_size <= 64 for each in made)
    assert made == config.draw(SLOW, 7, 1)
    assert made != config.draw(SLOW, 7, 2)


def test_settings_that_do_not_go_with_todays_champion_are_left_out() -> None:
    space: dict[str, Any] = {"loss": ["bce", "hinge"], "learning_rate": {"min": 0.001, "max": 0.1}}
    made = TuningConfig(population=9, space=space).draw(SLOW, 7, 1)
    assert {each.loss for each in made} == {"auto", "bce"}
    assert len(made) < 9


def test_the_worse_half_goes_at_each_rung_and_the_winner_goes_on_trial() -> None:
    arena, made = ran()
    first, second = [decision for decision in made if decision.action == "tune"][:2]
    assert [len(each.evidence["members"]) for each in (first, second)] == [6, 3]
    assert [each.evidence["examples"] for each in (first, second)] == [300, 600]
    assert [each.evidence["left"] for each in (first, second)] == [3, 1]
    losses = [member["loss"] for member in first.evidence["members"]]
    assert losses == sorted(losses)
    kept = [member["settings"] for member in first.evidence["members"][:3]]
    assert all(member["settings"] in kept for member in second.evidence["members"])
    assert "goes on trial" in second.reason
    assert {decision.lineage for decision in made if decision.action == "tune"} >= {"L1"}
    start = next(decision for decision in made if decision.action == "start")
    assert (start.evidence["kind"], start.evidence["alert_id"]) == ("tuned", "tuned-1")
    assert start.evidence["alpha"] == DRIFT.alpha / (MOST + 1)
    assert (
        arena.config_of(start.lineage).learning_rate
        == second.evidence["members"][0]["settings"]["learning_rate"]
    )
    json.dumps([decision.evidence for decision in made], allow_nan=False)


def test_a_winner_is_promoted_by_the_test_and_by_nothing_else() -> None:
    arena, made = ran()
    promote = next(decision for decision in made if decision.action == "promote")
    assert promote.evidence["kind"] == "tuned"
    assert promote.evidence["e_value"] >= (MOST + 1) / DRIFT.alpha
    assert promote.evidence["n"] >= DRIFT.min_events
    assert arena.champion.config.learning_rate > 10 * SLOW.learning_rate
    assert made.index(promote) > next(n for n, each in enumerate(made) if each.action == "start")


@pytest.mark.parametrize("policy", ["manual", "shadow"])
def test_under_other_policies_a_winner_is_recommended(policy: str) -> None:
    arena, made = ran(policy)
    assert arena.champion.lineage == "L1"
    assert [decision.evidence["kind"] for decision in made if decision.action == "recommend"] == ["tuned"]


def test_under_drift_a_winner_waits_for_an_alarm() -> None:
    arena, made = ran("drift")
    assert {decision.action for decision in made} == {"tune"}
    assert arena.tuning is not None
    assert arena.tuning.waiting is not None


def test_where_the_champions_settings_win_nobody_goes_on_trial() -> None:
    best = replace(SLOW, learning_rate=0.02)
    space: dict[str, Any] = {"learning_rate": {"min": 1e-7, "max": 1e-6}}
    made = decisions(replace(RECIPE, champion=best, tuning=replace(TUNING, space=space)).arena(), stream())
    assert {decision.action for decision in made} == {"tune"}
    ends = [decision for decision in made if decision.evidence["left"] == 1]
    assert len(ends) >= 2  # one population after the other
    assert all("the champion's own settings did best" in end.reason for end in ends)


def test_members_of_several_families_begin_untrained_and_the_winner_catches_up() -> None:
    arena, made = ran("better", "families")
    start = next(decision for decision in made if decision.action == "start")
    assert arena.config_of(start.lineage).family in ("naive_bayes", "mlp", "logistic")
    members = [json.dumps(each["settings"]) for each in made[0].evidence["members"]]
    assert len(members) == len(set(members))


def test_a_population_ends_when_what_it_began_from_is_rolled_back() -> None:
    arena = RECIPE.arena()
    assert (tuning := arena.tuning) is not None
    good = arena.champion.clone(arena.born(SLOW, 3))
    decisions(arena, stream().slice(0, 1_600))
    assert tuning.members
    arena.roll_back("a drill", {}, Now(0, 0), good)
    decisions(arena, stream().slice(1_600, 2_560))
    assert (tuning.members, tuning.waiting) == ([], None)
    decisions(arena, stream().slice(2_560, 2_624))
    assert len(tuning.members) == TUNING.population


@pytest.mark.parametrize(("at", "space"), [(1_600, "rates"), (2_496, "rates"), (1_600, "families")])
def test_a_restart_changes_nothing(at: int, space: str) -> None:
    tuning = TUNINGS[space]
    recipe = Recipe.from_dict(json.loads(json.dumps(replace(RECIPE, tuning=tuning).to_dict())))
    assert recipe == replace(RECIPE, tuning=tuning)
    straight, expected = ran("better", space)
    first, second = recipe.arena(), recipe.arena()
    before = decisions(first, stream().slice(0, at))
    files, record = first.state()
    second.load(files, json.loads(json.dumps(record)))
    assert repr(before + decisions(second, stream().slice(at, ROWS))) == repr(expected)
    assert second.champion.state() == straight.champion.state()
    assert second.state()[1] == straight.state()[1]


def test_the_population_takes_no_more_than_its_share() -> None:
    for share in (0.1, 0.4):
        arena = replace(
            RECIPE, drift=replace(DRIFT, policy="drift"), tuning=replace(TUNING, budget=share)
        ).arena()
        decisions(arena, stream())
        budget = arena.budget
        assert budget.tuned == budget.beside > 0
        reserve_us = ArenaConfig().reserve_ms * 1_000.0
        assert budget.tuned <= budget.champion * share / (1 - share) + reserve_us
    spent = replace(
        RECIPE,
        drift=replace(DRIFT, policy="drift"),
        beside=ArenaConfig(0.3, 1),
        tuning=replace(TUNING, budget=0.3),
    ).arena()
    decisions(spent, stream())
    assert spent.budget.beside <= spent.budget.champion * 0.3 / 0.7 + 8 * work_us(spent.champion, 64)


def test_challengers_pass_over_batches_that_nobody_can_pay_for_and_are_judged_on_the_others() -> None:
    drift = replace(DRIFT, policy="always")
    recipe = replace(RECIPE, drift=drift, challenger=replace(SLOW, learning_rate=0.02), tuning=None)
    rich, poor = recipe.arena(), replace(recipe, beside=ArenaConfig(0.3, 1)).arena()
    starts = {}
    for name, arena in (("rich", rich), ("poor", poor)):
        made = decisions(arena, stream(4_000))
        starts[name] = [decision.evidence["n"] for decision in made if decision.action == "promote"]
    assert rich.budget.passed == 0
    assert poor.budget.passed > 0
    tested = [challenger.test.count for challenger in poor.challengers] + starts["poor"]
    assert 0 < max(tested) < 1_500
    assert poor.budget.beside <= poor.budget.champion * 0.3 / 0.7 + 8 * work_us(poor.champion, 64)

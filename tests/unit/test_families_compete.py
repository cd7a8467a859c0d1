"""Models of several families on trial at once: what the champion's family cannot learn, another one wins with."""

from dataclasses import replace

import numpy as np

from learners.arena import Arena
from learners.batch import Batch, ModelConfig, Schema
from learners.challenger import Decision
from learners.drift import DriftConfig
from learners.entrants import MOST
from learners.recipe import Recipe

SCHEMA = Schema(("a", "b"), (), "t")
LINE = ModelConfig(family="logistic", batch_size=64, learning_rate=0.01)
OTHERS = (replace(LINE, family="naive_bayes"), replace(LINE, family="hoeffding_tree", grace=100))
DRIFT = DriftConfig(cooldown=1_000, max_events=4_000, policy="always", alpha=0.05)
RECIPE = Recipe(SCHEMA, LINE, replace(LINE, learning_rate=0.03), DRIFT, 3, others=OTHERS)


def bands(rows: int) -> Batch:
    """Labels that are 1 where a number is near 0: no line tells them apart, a tree does, and so does a variance."""
    random = np.random.default_rng(1)
    numbers = random.normal(size=(rows, 2)).astype(np.float32)
    label = (np.abs(numbers[:, 0]) < 0.6).astype(np.float32)
    moments, unserved = np.arange(rows, dtype=np.int64), np.full(rows, np.nan, np.float32)
    return Batch(
        [f"e{i}" for i in range(rows)],
        moments,
        moments,
        numbers,
        np.zeros((rows, 0), np.int64),
        unserved,
        label,
    )


def run(arena: Arena, batch: Batch) -> list[Decision]:
    return [event for event in arena.observe(batch, created_ms=0) if isinstance(event, Decision)]


def test_a_challenger_of_another_family_becomes_the_champion() -> None:
    arena = RECIPE.arena()
    made = run(arena, bands(9_000))
    started = [decision for decision in made if decision.action == "start"]
    assert [decision.evidence["kind"] for decision in started[:4]] == ["warm", *["fresh"] * 3]
    assert all(decision.evidence["alpha"] == DRIFT.alpha / (MOST + 2) for decision in started)
    promoted = [decision for decision in made if decision.action == "promote"]
    assert arena.config_of(promoted[0].lineage) in OTHERS
    assert arena.champion.config.family in {"naive_bayes", "hoeffding_tree"}
    assert promoted[0].evidence["e_value"] >= (MOST + 2) / DRIFT.alpha


def test_a_recipe_and_a_restart_keep_them() -> None:
    batch = bands(6_000)
    assert Recipe.from_dict(RECIPE.to_dict()) == RECIPE
    straight, first, second = RECIPE.arena(), RECIPE.arena(), Recipe.from_dict(RECIPE.to_dict()).arena()
    expected = run(straight, batch)
    before = run(first, batch.slice(0, 3_200))
    second.load(*first.state())
    assert repr(before + run(second, batch.slice(3_200, 6_000))) == repr(expected)
    assert second.champion.state() == straight.champion.state()

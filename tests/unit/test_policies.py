"""Challengers without an alarm: only under "always", one trial after the other, and promoted by the same test."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from learners.arena import Arena
from learners.batch import Batch, ModelConfig, Schema
from learners.challenger import Decision
from learners.drift import DriftConfig

SLOW = ModelConfig(family="logistic", batch_size=64, learning_rate=0.0005)
FAST = replace(SLOW, learning_rate=0.02)
DRIFT = DriftConfig(cooldown=1_000, max_events=1_500)


def decisions(policy: Any, champion: ModelConfig) -> list[Decision]:
    """What an arena decides on a stream without drift; the champion learns it, slowly or fast."""
    random = np.random.default_rng(1)
    rows, schema = 8_000, Schema(("a", "b", "c"), (), "t")
    numbers = random.normal(size=(rows, 3)).astype(np.float32)
    label = (random.random(rows) < 1 / (1 + np.exp(-2 * numbers.sum(axis=1)))).astype(np.float32)
    moments, unserved = np.arange(rows, dtype=np.int64), np.full(rows, np.nan, np.float32)
    none = np.zeros((rows, 0), np.int64)
    batch = Batch([f"e{i}" for i in range(rows)], moments, moments, numbers, none, unserved, label)
    ring = Arena(schema, champion, FAST, replace(DRIFT, policy=policy), 3, metrics_every=10**9, device="cpu")
    return [event for event in ring.observe(batch, created_ms=0) if isinstance(event, Decision)]


def test_always_tries_without_an_alarm_and_promotes_what_proved_better() -> None:
    made = decisions("always", SLOW)
    first = next(decision for decision in made if decision.action == "promote")
    assert first.evidence["alert_id"].startswith("always-")
    assert first.evidence["e_value"] >= 1 / first.evidence["alpha"]


def test_always_begins_again_when_a_trial_is_over_and_not_before() -> None:
    made = decisions("always", FAST)
    trials = list(
        dict.fromkeys(decision.evidence["alert_id"] for decision in made if decision.action == "start")
    )
    begun = [int(trial.removeprefix("always-")) for trial in trials]
    assert len(begun) >= 2
    assert all(later - earlier >= 2 * DRIFT.cooldown for earlier, later in pairwise(begun))


@pytest.mark.parametrize("policy", ["better", "manual", "shadow"])
def test_other_policies_wait_for_an_alarm(policy: str) -> None:
    assert decisions(policy, FAST) == []

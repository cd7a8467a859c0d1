"""Tuning in a learner and in a backtest: versions of a tuned champion are verified, and twice is the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from learners.drift import DriftConfig
from learners.entries import Version
from learners.space import TuningConfig
from streams.backtest import Options, chosen, make_settings
from streams.backtest_engine import Backtest
from streams.labelled import ListLog
from streams.outlet import ListOutlet
from streams.rebuild import ledger_of
from streams.simulate import simulate
from streams.verify import VERIFIED, compare
from tests import learner_log as logs
from tests.stream_records import HIDDEN

ROWS = 3_000
SMALL = logs.small_task()
RATES: dict[str, Any] = {"learning_rate": {"min": 0.0005, "max": 0.2}}
TUNING = TuningConfig(population=4, rungs=2, events=128, budget=0.5, space=RATES)
# No alarm: whatever becomes the champion here was tuned.
CALM = DriftConfig(min_events=200, max_events=2_000, cooldown=400, psi_threshold=100.0)
TASK = replace(SMALL, drift=CALM, tuning=TUNING, model=replace(SMALL.model, learning_rate=0.0005))


def test_a_tuned_champion_survives_a_restart_and_its_versions_are_verified(tmp_path: Path) -> None:
    log = logs.records(TASK, logs.labelled(TASK, ROWS, turn=1.0))
    ends = []
    for name, lives in (("straight", (1.0,)), ("broken", (0.4, 0.7, 1.0))):
        outlet, folder = ListOutlet(), tmp_path / name
        for share in lives:
            part = {p: found[: int(len(found) * share)] for p, found in log.items()}
            learner = logs.learner(TASK, folder, part, outlet, at_once=3)
            learner.run()
        ends.append(learner)
        if name == "broken":
            kept = learner._kept
            known = [line.entry for line in ledger_of(kept)[0] if isinstance(line.entry, Version)]
            assert {entry.lineage for entry in known} == {"L1", "L2"}
            for entry in (known[0], known[len(known) // 2], known[-1]):
                assert compare(TASK, kept, ListLog(log), entry.version)[0] == VERIFIED
    made = learner.training
    assert made.arena.champion.config.learning_rate > 10 * TASK.model.learning_rate
    spent = made.metrics.snapshot()
    assert spent["arena_budget"] == TASK.arena.budget
    assert 0 < spent["tuning_work_ms_total"] < spent["beside_work_ms_total"]
    assert spent["champion_work_ms_total"] < made.arena.budget.champion / 1_000  # this life's only
    total = ends[0].training.metrics.snapshot()["champion_work_ms_total"]
    assert total == pytest.approx(ends[0].training.arena.budget.champion / 1_000)


def test_a_backtest_tunes_too_and_twice_is_the_same() -> None:
    stream = simulate("clicks", seed=3, events=4_000)
    small = replace(TASK.model, family="logistic", rows=256)
    task = replace(TASK, model=small, challenger=replace(small, learning_rate=0.01))
    lanes = []
    for _ in range(2):
        given = Options(("full", "continuous"), within="30m")
        backtest = Backtest(
            task, HIDDEN, chosen(given.policies), stream.events, make_settings(task, stream, given)
        )
        backtest.run(stream.items())
        lanes.append({lane.name: lane for lane in backtest.lanes})
    first, second = (each["full"] for each in lanes)
    assert [decision.action for decision in first.policy.decisions].count("tune") >= 2
    assert first.scores.tobytes() == second.scores.tobytes()
    assert first.policy.decisions == second.policy.decisions
    json.dumps([decision.evidence for decision in first.policy.decisions], allow_nan=False)

"""A backtest serves a canary and explores as the live roles do: the same arms, propensities and weights."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.metrics import Metrics
from infra.settings import Settings as Surroundings
from learners.batch import Batch
from learners.canary import chosen
from learners.challenger import Challenger
from learners.slot import encode_full
from learners.trainer import Trainer
from streams import wire
from streams.backtest import Options, make_settings, write_predictions
from streams.backtest_engine import Backtest, Lane, Settings
from streams.backtest_policies import Full, Retraining
from streams.backtest_stream import cut
from streams.emit import Emitter
from streams.exploration import marks
from streams.live import LiveModel
from streams.rows import Labelled
from streams.simulate import simulate
from streams.task_parse import parse_task
from streams.topics import Topics
from streams.transaction import Outputs
from tests import learner_log as logs
from tests.stream_records import HIDDEN

SHARE, ROWS = 0.3, 4_000
EXPLORED = '[exploration]\nshare = 0.2\nlabels = "above"\nthreshold = 0.45\nmax_weight = 4\n'
SMALL = logs.small_task().text
BOTH = parse_task(f"{SMALL}\n[guard]\ncanary = {SHARE}\n{EXPLORED}", "both", Path("both.toml"))
CANARY = parse_task(f"{SMALL}\n[guard]\ncanary = {SHARE}\n", "canary", Path("canary.toml"))
KEEPING = Settings(256, 10**9, 0, Retraining(10**12), keep_rows=True)


def lane_with_canary() -> tuple[Backtest, Lane, Trainer]:
    """A backtest of "full" whose challenger, L2, has just become a canary; nothing was served so far."""
    stream = simulate("clicks", seed=3, events=400)
    settings = make_settings(BOTH, stream, Options(("full",), predictions=Path("x")))
    backtest = Backtest(BOTH, HIDDEN, ["full"], stream.events, settings)
    lane, other = backtest.lanes[0], Trainer(BOTH.schema, BOTH.model, 9, "L2", "cpu")
    assert isinstance(lane.policy, Full)
    for seed, trainer in enumerate((lane.policy.trainer, other)):
        trainer.train(logs.labelled(BOTH, 1_000, seed).batch())
    arena = lane.policy._arena
    arena.born(BOTH.model, 9)
    arena.trials.challengers = [Challenger(other, "fresh", "ranks-1", arena.trials.test())]
    arena.approve("L2", 0, 0)
    lane._beside.follow(other, 0)
    return backtest, lane, other


def test_arms_and_propensities_are_those_of_the_live_emitter(tmp_path: Path) -> None:
    backtest, lane, canary = lane_with_canary()
    [micro] = cut(simulate("clicks", seed=3, events=400).items(), 400, 10**12)
    rows = backtest.path.features(micro.events)
    backtest._note(rows)
    lane.score(rows)
    live = LiveModel(BOTH, Surroundings(kafka="none:1", data=tmp_path, partitions=2), "w", Metrics())
    for trainer, share in ((lane.policy.trainer, 0.0), (canary, SHARE)):
        trainer.advance(trainer.refresh)
        meta, payload = encode_full(trainer, event_ms=0, created_ms=0, canary=share)
        if share:
            live._canary = live._beside(meta, payload)
        else:
            live._slot.load_full(meta, payload)
    outputs, topics = Outputs(), Topics.of(BOTH)
    emitter = Emitter(BOTH, topics, 2, live)
    emitter.write(outputs, len(BOTH.entities) - 1, rows, np.zeros(len(rows), np.int64))
    values = [(topic, v or b"") for (topic, _), sent in outputs.records.items() for _, v, _ in sent]
    told = {row["event_id"]: row for row in (json.loads(v) for t, v in values if t == topics.predictions)}
    made = wire.Rows.concat([wire.decode_examples(v)[0] for t, v in values if t == topics.examples])
    assert sorted(made.ids) == sorted(rows.ids)
    np.testing.assert_array_equal(lane.arm[made.offset], made.arm)
    found = lane.marks(made.ids, made.offset)
    for name in ("explored", "propensity", "weight"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert {0.2, 1.0} == set(made.propensity.astype(np.float64).round(6).tolist())
    assert made.explored.any()
    assert set(made.arm.tolist()) == {-2, 2}
    write_predictions(backtest, tmp_path / "p.parquet")
    for row in pq.read_table(tmp_path / "p.parquet").to_pylist():
        live_row = told[row["event_id"]]
        for name in ("score", "arm", "explored"):
            assert row[f"full_{name}"] == live_row[name]
        assert row["full_propensity"] == pytest.approx(live_row["propensity"])
        assert row["full_version"].partition(".")[0] == live_row["version"].partition(".")[0]


def steps(labelled: Labelled, size: int = 64) -> Iterator[Labelled]:
    for start in range(0, len(labelled), size):
        yield labelled.take(np.arange(start, min(start + size, len(labelled))))


def worked_off(lane: Lane, labelled: Labelled) -> Lane:
    for part in steps(labelled):
        lane.score(part.rows)
        lane.learn(part, part.batch(), int(part.known_ms[-1]), warm=False)
    return lane


@pytest.mark.parametrize("refresh_ms", [0, 60_000])
def test_a_canary_serves_its_share_until_its_swap(refresh_ms: int) -> None:
    labelled = logs.labelled(CANARY, ROWS)
    keys = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (ROWS, len(CANARY.entities)))
    labelled = replace(labelled, rows=replace(labelled.rows, keys=keys))
    lane = worked_off(Lane("full", CANARY, replace(KEEPING, refresh_ms=refresh_ms), ROWS), labelled)
    began, ended = (
        next(each for each in lane.policy.decisions if each.action == action)
        for action in ("canary", "promote")
    )
    assert ended.evidence["canary"]["n"] > 20  # what its arm has served came to the test
    lineage = began.lineage
    during = (labelled.rows.event_ms > began.event_ms) & (labelled.rows.event_ms <= ended.event_ms)
    own = chosen(keys[:, 0], lineage, SHARE)
    code = int(lineage[1:])
    np.testing.assert_array_equal(lane.arm, np.where(during, np.where(own, code, -code), 0))
    names = np.array(list(lane.versions))[lane.version_of]
    by_it = np.array([name.startswith(f"{lineage}.") for name in names])
    np.testing.assert_array_equal(by_it, (during & own) | (labelled.rows.event_ms > ended.event_ms))
    numbers = [int(name.partition(".")[2]) for name in lane.versions if name.startswith(f"{lineage}.")]
    assert numbers == sorted(set(numbers))  # its versions go on where the canary's ended


def test_a_label_that_its_own_decision_would_have_hidden_teaches_nothing() -> None:
    labelled = logs.labelled(BOTH, 1_000)
    lane = worked_off(Lane("continuous", BOTH, KEEPING, 1_000), labelled)
    hand = Trainer(BOTH.schema, BOTH.model, BOTH.seed, "L1")
    for part in steps(labelled):
        batch: Batch = part.batch()
        found = marks(BOTH.exploration, part.rows.ids, hand.score(batch.numbers, batch.categories))
        seen = (found.propensity == 1.0) | found.explored
        hand.train(replace(batch, weight=found.weight).take(seen))
    assert 300 < hand.examples < 900
    assert lane.policy.trainer.state() == hand.state()
    assert not lane.arm.any()

"""How inputs hang together: exact correlations of ranks, a fair test, one alert that names the pair, exact restarts."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from learners.batch import Batch, Schema
from learners.drift import Alert, DriftConfig
from learners.evidence import RankEvidence
from learners.joint import GROUP, JointWatch, Pairs, Reference, scores
from learners.packing import pack, unpack
from learners.shift import ShiftDetector
from learners.watched import Watched

SCHEMA = Schema(tuple(f"x{i}" for i in range(6)), ("kind",), "t")
CONFIG = DriftConfig()
ROWS, CHANGE = 16_500, 14_300


@cache
def stream(seed: int) -> Batch:
    """Numbers x0 to x2 that go up together, x3 to x5 on their own, x5 with holes; a category of three values."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(ROWS, 6)).astype(np.float32)
    numbers[:, :3] += random.normal(size=(ROWS, 1)).astype(np.float32)
    numbers[random.random(ROWS) < 0.3, 5] = np.nan
    kinds = random.integers(1, 4, (ROWS, 1)) * 0x1E3779B97F4A7C15
    ms, nothing = np.arange(ROWS, dtype=np.int64), np.zeros(ROWS, np.float32)
    score = random.beta(1, 30, ROWS).astype(np.float32)
    return Batch([f"e{i}" for i in range(ROWS)], ms, ms, numbers, kinds, score, nothing)


def reordered(batch: Batch, column: int, by: np.ndarray) -> Batch:
    """The same values of a number after the change, in another order: nothing shows in the column itself."""
    numbers = batch.numbers.copy()
    numbers[CHANGE:, column][np.argsort(by[CHANGE:])] = np.sort(numbers[CHANGE:, column])
    return replace(batch, numbers=numbers)


def together(seed: int = 0) -> Batch:
    """x3 and x4 are correlated after the change."""
    batch, random = stream(seed), np.random.default_rng(100 + seed)
    return reordered(batch, 4, 0.7 * batch.numbers[:, 3] + 0.7 * random.normal(size=ROWS))


def feed(detector: ShiftDetector, batch: Batch, step: int = 500) -> list[Alert]:
    parts = [batch.slice(start, min(start + step, len(batch))) for start in range(0, len(batch), step)]
    return [alert for part in parts for alert in detector.update(part, part.served, "L1.3")]


def test_ranks_are_whole_numbers_that_equal_values_share_and_missing_ones_say_nothing() -> None:
    numbers = np.array([[3.0, 7.0], [1.0, 7.0], [np.nan, 7.0], [3.0, 7.0], [9.0, 7.0]], np.float32)
    found = scores(numbers, np.array([[5], [0], [5], [8], [0]], np.int64))
    assert found[0].tolist() == [0, -3, 0, 0, 3]  # of four known
    assert found[3].tolist() == [0, 9, 4, 0, 9]  # squared; 18 // 4 where it is missing
    assert found[1].tolist() == [0] * 5
    assert sorted(np.abs(found[2]).tolist()) == [0, 0, 1, 1, 2]


def test_correlations_are_those_of_ranks_and_another_unit_changes_no_bit() -> None:
    batch = stream(0).slice(0, 125)
    first, pairs = scores(batch.numbers, batch.categories), Pairs(7)
    found = pairs.correlations(first)
    straight = pairs.straight
    expected = np.asarray(np.corrcoef(first[:7]))[pairs.left[straight], pairs.right[straight]]
    np.testing.assert_allclose(found[straight], expected, atol=1e-6)
    assert len(found) == 4 * 21
    cents = scores(np.exp(batch.numbers) * 100, batch.categories)
    np.testing.assert_array_equal(pairs.correlations(cents), found)
    direction = np.random.default_rng(0).normal(size=len(found)).astype(np.float32)
    assert pairs.along(first, direction).mean() == pytest.approx(float(found @ direction), abs=1e-4)


def test_more_columns_than_a_group_has_are_dealt_into_groups() -> None:
    pairs = Pairs(2 * GROUP + 2)
    assert set(pairs.left) | set(pairs.right) == set(range(2 * GROUP + 2))
    assert len(pairs.left) < 3 * 2 * GROUP * GROUP
    values = np.random.default_rng(0).normal(size=(400, 1)) + np.zeros((1, 2 * GROUP + 2))
    ranked = scores(values.astype(np.float32), np.zeros((400, 0), np.int64))
    assert pairs.correlations(ranked)[pairs.straight] == pytest.approx(1.0)
    direction = np.ones(len(pairs.left), np.float32)
    assert pairs.along(ranked, direction).mean() == pytest.approx(pairs.correlations(ranked).sum())


def test_without_a_change_the_test_is_standard_and_its_false_alarms_as_far_apart_as_the_budget_says() -> None:
    random, budget, lengths, values = np.random.default_rng(1), 100, list[int](), list[float]()
    mixed = np.linalg.cholesky(0.5 * np.eye(80) + 0.5)  # of correlations that hang together themselves
    evidence, since = RankEvidence(1), 0
    for _ in range(40):
        blocks = (0.2 + 0.1 * random.normal(size=(64 + 8 + 64, 80)) @ mixed.T).astype(np.float32)
        reference = Reference(blocks[:64], np.ones(80, np.bool_), 0.01)
        for at in range(72, len(blocks)):
            values.append(reference.strangeness(blocks[at - 8 : at], blocks[at]))
            evidence.update(np.array(values[-1:]))
            since += 1
            if evidence.values[0] >= budget:
                lengths.append(since)
                since = 0
                evidence.restart()
        assert reference.effect(blocks[-8:]) < 0.1
    assert abs(np.mean(values)) < 0.2
    assert 0.8 < np.std(values) < 1.2
    assert len(values) / max(1, len(lengths)) >= budget


def test_two_that_become_correlated_are_one_alert_that_names_them() -> None:
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), together())
    assert (alert.detector, alert.level) == ("joint", "input")
    assert CHANGE < int(alert.alert_id.removeprefix("joint-")) <= CHANGE + CONFIG.window
    assert {each.name for each in alert.features[:2]} == {"x3", "x4"}
    assert alert.subject == alert.features[0].name
    assert alert.message.startswith("x3 is related to x4 with rank correlation 0.")
    assert alert.strength > alert.threshold >= CONFIG.joint_threshold
    assert 0.1 < alert.severity < 0.6
    assert abs(int(alert.since_event_id[1:]) - CHANGE) <= 60
    details = json.loads(json.dumps(alert.details))
    pair = details["pairs"][0]
    assert (pair["columns"], pair["share"] > 0.8) == (["x3", "x4"], True)
    assert abs(pair["rank_correlation"][0]) < 0.05
    assert pair["rank_correlation"][1] > 0.5
    assert [sum(shares) for shares in pair["shares"]] == pytest.approx([1.0, 1.0])
    assert details["effect_threshold_evidence"]["joint.inputs"][2] >= details["evidence_needed"]


def test_extremes_that_come_together_without_any_correlation_are_seen() -> None:
    batch, random = stream(1), np.random.default_rng(5)
    far = np.abs(batch.numbers[:, 3]) + 0.3 * np.abs(random.normal(size=ROWS))
    moved = reordered(batch, 4, far * random.choice([-1, 1], ROWS))
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), moved)
    assert alert.detector == "joint"
    assert {each.name for each in alert.features[:2]} == {"x3", "x4"}
    assert "x3 is related to x4 otherwise than before" in alert.message


def test_what_leaves_its_group_is_named_first() -> None:
    batch = stream(2)
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), reordered(batch, 1, np.random.default_rng(6).random(ROWS)))
    assert alert.detector == "joint"
    assert [each.name for each in alert.features][:1] == ["x1"]
    assert {each.name for each in alert.features} == {"x0", "x1", "x2"}


def test_a_column_that_moves_is_told_as_that_and_not_as_another_relation() -> None:
    batch = stream(3)
    numbers = batch.numbers.copy()
    numbers[CHANGE:, 0] = 3.0 + np.random.default_rng(7).normal(size=ROWS - CHANGE)  # and left its group
    alert, *more = feed(ShiftDetector(SCHEMA, CONFIG), replace(batch, numbers=numbers))
    assert (alert.detector, alert.subject, more) == ("psi", "x0", [])


@pytest.mark.parametrize(
    ("schema", "config"),
    [
        (SCHEMA, DriftConfig(joint_threshold=2.0)),
        (SCHEMA, DriftConfig(window=200)),  # blocks of 25 rows
        (Schema(("x0",), (), "t"), CONFIG),
        (SCHEMA, DriftConfig(ignore=("x3",))),
    ],
)
def test_who_does_not_watch_it_is_silent_about_it(schema: Schema, config: DriftConfig) -> None:
    batch = together()
    width, kinds = len(schema.numbers), len(schema.categories)
    part = replace(batch, numbers=batch.numbers[:, :width], categories=batch.categories[:, :kinds])
    assert feed(ShiftDetector(schema, config), part) == []


def test_of_a_column_that_may_not_be_looked_at_nothing_is_a_change() -> None:
    random = np.random.default_rng(8)
    blocks = random.normal(size=(80, 6)).astype(np.float32) * np.float32(0.1)
    blocks[64:, 2] += 0.9
    able = np.arange(6) != 2
    masked, whole = Reference(blocks[:64], able, 0.01), Reference(blocks[:64], able | True, 0.01)
    assert (masked.effect(blocks[-8:]) < 0.1, whole.effect(blocks[-8:]) > 0.5) == (True, True)
    found = [each.strangeness(blocks[-9:-1], blocks[-1]) for each in (masked, whole)]
    assert abs(found[0]) < 4.0 < found[1]


@pytest.mark.parametrize("stop", [3_900, 12_250, 14_700])
def test_a_restart_changes_nothing(stop: int) -> None:
    batch = together(5)
    straight, first, second = (ShiftDetector(SCHEMA, CONFIG) for _ in range(3))
    before = feed(first, batch.slice(0, stop), 350)
    second.load(unpack(pack(first.state())))
    after = feed(second, batch.slice(stop, ROWS))
    assert [alert.detector for alert in before + after] == ["joint"]
    assert before + after == feed(straight, batch)
    for name, array in straight.state().items():
        np.testing.assert_array_equal(array, second.state()[name], err_msg=name)


def test_the_models_score_is_no_input() -> None:
    rows = Watched(
        np.zeros((5, 3), np.float32), np.zeros((5, 1), np.int64), np.zeros(5, np.str_), np.arange(5)
    )
    assert len(JointWatch.ranked(rows)) == 2 * 3

"""Rolling metrics against their definitions, worked out the slow way."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.packing import pack, unpack
from learners.prequential import Prequential, id_hashes, log_loss, metric_row, metrics

# Few distinct scores, so that ties are the rule.
PAIRS = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])), min_size=1, max_size=40
)


def arrays(pairs: list[tuple[bool, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([y for y, _ in pairs], np.float32), np.array([s for _, s in pairs], np.float32)


def slow_auc(label: np.ndarray, score: np.ndarray) -> float:
    wins = [(p > n) + 0.5 * (p == n) for p in score[label == 1] for n in score[label == 0]]
    return float(np.mean(wins)) if wins else math.nan


def slow_average_precision(label: np.ndarray, score: np.ndarray) -> float:
    if not 0 < label.sum() < len(label):
        return math.nan
    total, recall = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        chosen = score >= threshold
        now = label[chosen].sum() / label.sum()
        total += label[chosen].mean() * (now - recall)
        recall = now
    return total


@given(PAIRS)
def test_auc_and_average_precision_are_what_their_definitions_say(pairs: list[tuple[bool, float]]) -> None:
    label, score = arrays(pairs)
    row = metrics(label, score)
    assert row["auc"] == pytest.approx(slow_auc(label, score), nan_ok=True)
    assert row["average_precision"] == pytest.approx(slow_average_precision(label, score), nan_ok=True)
    assert (row["n"], row["positives"]) == (len(label), label.sum())


@given(PAIRS, st.randoms())
def test_metrics_do_not_depend_on_the_order_of_examples(
    pairs: list[tuple[bool, float]], random: Random
) -> None:
    shuffled = pairs.copy()
    random.shuffle(shuffled)
    assert metrics(*arrays(shuffled)) == pytest.approx(metrics(*arrays(pairs)), nan_ok=True)


def test_log_loss_and_its_limits() -> None:
    label, score = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.8, 0.8, 0.0, math.nan])
    expected = [-math.log(0.8), -math.log(0.2), -math.log(1e-6), -math.log(1e-6)]
    np.testing.assert_allclose(log_loss(label, score), expected)


def test_calibration_error_of_a_calibrated_and_of_an_overconfident_model() -> None:
    random = np.random.default_rng(0)
    score = random.beta(1, 60, 50_000)  # rare events: equal-width bins would see one bin only
    label = random.random(50_000) < score
    assert metrics(label, score)["ece"] < 0.002
    assert metrics(label, 3 * score)["ece"] == pytest.approx(2 * score.mean(), rel=0.1)
    assert metrics(label, np.full(50_000, label.mean()))["ece"] == pytest.approx(0.0, abs=1e-9)


def test_scores_that_are_not_numbers_rank_last_and_count_as_wrong() -> None:
    row = metrics(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.9, 0.1, math.nan, 0.2]))
    assert row["auc"] == 0.5
    assert row["log_loss"] > 13.0 / 4
    assert math.isfinite(row["ece"])
    assert math.isnan(metrics(np.array([1.0]), np.array([math.nan]))["ece"])


def test_nothing_known_is_said_as_not_a_number() -> None:
    row = Prequential(10).row("nobody")
    assert (row["n"], row["positives"]) == (0, 0)
    assert all(math.isnan(row[name]) for name in ("auc", "average_precision", "log_loss", "ece"))


@pytest.mark.parametrize("step", [1, 7, 100, 1_000])
def test_only_the_newest_examples_of_the_arm_count(step: int) -> None:
    random = np.random.default_rng(1)
    label, score = (random.random(700) < 0.3).astype(np.float32), random.random(700).astype(np.float32)
    rolling = Prequential(250)
    for start in range(0, 700, step):
        part = slice(start, start + step)
        rolling.update("a", label[part], score[part])
        rolling.update("b", label[part], 1 - score[part])
    assert rolling.row("a") == metrics(label[-250:], score[-250:])
    assert rolling.row("a", last=60) == metrics(label[-60:], score[-60:])
    assert rolling.row("b")["auc"] == pytest.approx(1 - rolling.row("a")["auc"])


def test_arms_are_copied_kept_saved_and_dropped() -> None:
    random = np.random.default_rng(2)
    rolling = Prequential(50)
    rolling.update("a", (random.random(80) < 0.5).astype(np.float32), random.random(80).astype(np.float32))
    rolling.copy("a", "b")
    rolling.copy("nobody", "c")
    assert rolling.row("b") == rolling.row("a")
    again = Prequential(50)
    again.load(unpack(pack(rolling.state())))
    for each in (rolling, again):
        each.update("a", np.array([1.0]), np.array([0.3]))
    assert again.row("a") == rolling.row("a") != rolling.row("b")
    rolling.keep({"b"})
    assert rolling.row("a")["n"] == 0
    assert rolling.row("b")["n"] == 50


def test_a_metric_row_names_its_arm_and_counts_in_whole_numbers() -> None:
    row = metric_row("champion", "L1", metrics(np.array([1.0, 0.0]), np.array([0.9, 0.2])), 5, 6)
    assert (row.arm, row.lineage, row.n, row.positives, row.auc, row.event_ms, row.created_ms) == (
        "champion", "L1", 2, 1, 1.0, 5, 6,
    )  # fmt: skip
    assert isinstance(row.n, int)


def test_a_correction_changes_a_label_where_it_still_is_and_adds_nothing() -> None:
    ids = [f"e-{i}" for i in range(8)]
    label, score = np.zeros(8, np.float32), np.linspace(0.1, 0.8, 8, dtype=np.float32)
    rolling = Prequential(5)
    rolling.update("a", label, score, id_hashes(ids)[:, None])
    rolling.update("b", label[6:], score[6:], id_hashes(ids)[6:, None])
    rolling.correct(["e-1", "e-4", "e-7", "never"], np.ones(4, np.float32))
    assert rolling.row("a") == metrics(np.array([0.0, 1.0, 0.0, 0.0, 1.0]), score[3:])  # e-1 had left
    assert rolling.row("b") == metrics(np.array([0.0, 1.0]), score[6:])


def test_segments_are_measured_by_the_values_that_are_frequent() -> None:
    random = np.random.default_rng(4)
    label, score = (random.random(400) < 0.4).astype(np.float32), random.random(400).astype(np.float32)
    city = np.repeat([7, -9, 7, 5], [120, 60, 180, 40])
    about = np.column_stack((np.arange(400), city, np.zeros(400, np.int64)))
    rolling = Prequential(400, ("city", "none"))
    rolling.update("a", label, score, about)
    assert rolling.values("a") == [("city", 7), ("city", -9), ("none", 0)]  # 40 of 5 are too few
    own = city == 7
    assert rolling.segment_row("a", "city", 7) == metrics(label[own], score[own])
    assert rolling.values("nobody") == []
    again = Prequential(400, ("city", "none"))
    again.load(unpack(pack(rolling.state())))
    assert again.segment_row("a", "city", -9) == rolling.segment_row("a", "city", -9)
    other = Prequential(400, ("none",))  # the task file was changed: ids are kept, segments begin anew
    other.load(unpack(pack(rolling.state())))
    assert other.row("a") == rolling.row("a")
    assert other.values("a") == [("none", 0)]

"""Exploration: who is drawn, what a label stands for, and what it is good for where decisions hide labels."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from learners.batch import Batch, ModelConfig, Schema
from learners.prequential import log_loss
from learners.trainer import Trainer
from streams import wire
from streams.exploration import NONE, Exploration, marks
from streams.joining import JoinPartition
from streams.task import Task
from tests.kind_streams import PACES, paces, rides
from tests.stream_records import labels
from tests.unit.test_joining import ZERO, examples, join_of
from tests.unit.test_predictions import RIDE, sent
from tests.unit.test_task_errors import complaint

IDS = [f"event-{i}" for i in range(20_000)]
SOME = Exploration(share=0.1, labels="below", threshold=0.3, max_weight=5.0)


def test_the_share_is_drawn_by_the_id_alone() -> None:
    low, high = (marks(SOME, IDS, np.full(len(IDS), score)) for score in (0.1, 0.9))
    np.testing.assert_array_equal(low.explored, high.explored)
    assert abs(low.explored.mean() - 0.1) < 0.01
    again = marks(SOME, IDS[7:9], np.zeros(2))
    np.testing.assert_array_equal(again.explored, low.explored[7:9])


def test_a_propensity_is_one_where_labels_are_seen_and_the_share_elsewhere() -> None:
    found = marks(SOME, IDS[:4], np.array([0.1, 0.29, 0.3, 0.9]))
    np.testing.assert_allclose(found.propensity, [1, 1, 0.1, 0.1])
    np.testing.assert_allclose(found.weight, [1, 1, 5, 5])  # clipped
    above = marks(replace(SOME, labels="above", max_weight=100.0), IDS[:4], np.array([0.1, 0.29, 0.3, 0.9]))
    np.testing.assert_allclose(above.weight, [10, 10, 1, 1])


def test_without_a_share_nothing_is_marked() -> None:
    found = marks(NONE, IDS[:3], np.zeros(3))
    assert not found.explored.any()
    assert [*found.propensity.tolist(), *found.weight.tolist()] == [1.0] * 6


def test_weighted_examples_stand_for_all_events() -> None:
    """The mean of a loss over what is seen, weighted, is that over all events, on average over draws."""
    random = np.random.default_rng(1)
    scores, losses = random.random(len(IDS)), random.exponential(1.0, len(IDS))
    config = replace(SOME, max_weight=1e9)
    estimates = []
    for draw in range(200):
        found = marks(config, [f"{draw}-{i}" for i in range(500)], scores[:500])
        seen = (found.propensity == 1.0) | found.explored
        estimates.append(float((found.weight * losses[:500] * seen).mean()))
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - losses[:500].mean()) < 4 * error


def test_a_hidden_label_gets_no_default_and_one_that_is_seen_has_its_weight() -> None:
    """Of four events, one is decided for and two are explored, one of them with a label; one is hidden."""
    record, join = examples(("a", 0), ("b", 0), ("c", 0), ("d", 0)), join_of(ZERO)
    rows, served, versions = wire.decode_examples(record.value)
    marked = replace(
        rows,
        propensity=np.array([1.0, 0.1, 0.1, 0.1], np.float32),
        explored=np.array([False, True, False, True]),
        weight=np.array([1.0, 5.0, 5.0, 5.0], np.float32),
    )
    record = replace(record, value=wire.encode_examples(marked, served, versions))
    assert join.fold([record, labels(["d"], [1.0])]) is None
    found = join.fold([examples(("e", 10))])
    assert found is not None
    assert (found.rows.ids, found.label.tolist()) == (["a", "b", "d"], [0.0, 0.0, 1.0])
    assert found.batch().weight.tolist() == [1.0, 5.0, 5.0]
    assert (join.counts.dropped, join.counts.defaulted) == (1, 2)
    again = JoinPartition(ZERO)
    again.restore(join.snapshot())
    assert again.fold([labels(["c"], [1.0])]) is None  # too late, as where silence drops
    assert again.counts.late == 1


@pytest.mark.parametrize(
    ("lines", "line", "message", "fix"),
    [
        (
            "threshold = 0.3",
            57,
            "threshold has no effect without share",
            "add share = 0.02, or remove this line",
        ),
        ('share = 0.1\nlabels = "over"', 58, 'labels is "over"', 'use "above" or "below"'),
        (
            "share = 0.1\nthreshold = 1.0",
            58,
            "threshold is 1, and a score is a probability",
            "use a number between 0 and 1",
        ),
    ],
)
def test_what_means_nothing_is_refused(lines: str, line: int, message: str, fix: str) -> None:
    said = complaint("[serving]", f"[exploration]\n{lines}\n[serving]")
    assert said == f"my.toml:{line}: exploration.{message}\n  fix: {fix}"


def test_of_several_classes_the_winner_decides() -> None:
    config, scores = (
        Exploration(share=0.1, classes=("short", "long")),
        np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]),
    )
    found = marks(config, IDS[:2], scores.astype(np.float32), PACES)
    np.testing.assert_allclose(found.propensity, [1, 0.1])
    np.testing.assert_allclose(found.weight, [1, 10])
    many = marks(config, IDS, np.tile(scores[1], (len(IDS), 1)), PACES)
    assert abs(many.explored.mean() - 0.1) < 0.01
    assert many.hidden.tolist() == (~many.explored).tolist()


@pytest.mark.parametrize(
    ("classes", "propensity", "propensities"),
    [
        ('["middle", "long"]', 0.2, {"short": 0.8, "middle": 0.2}),
        ('["short"]', 1.0, {"short": 1.0}),
    ],
)
def test_a_prediction_has_the_classes_that_may_be_acted_on(
    classes: str, propensity: float, propensities: dict[str, float], tmp_path: Path
) -> None:
    """The untrained model gives all classes the same probability, and the first wins."""
    [data] = sent(paces(f"[exploration]\nshare = 0.2\nclasses = {classes}\n"), RIDE, tmp_path)
    found = json.loads(data)
    assert (found["class"], found["propensity"], found["propensities"]) == ("short", propensity, propensities)


@pytest.mark.parametrize(
    ("task", "lines", "message", "fix"),
    [
        (paces, "share = 0.1", "classes is missing", "name the classes whose events get a label"),
        (paces, 'share = 0.1\nclasses = ["slow"]', 'classes has "slow"', "use some of short, middle, long"),
        (paces, 'share = 0.1\nclasses = ["long", "short", "middle"]', "classes has all classes", "remove"),
        (paces, "share = 0.1\nthreshold = 0.3", "threshold has no meaning in a multiclass task", "remove it"),
        (rides, "share = 0.1", "threshold is missing", "add the value by which is decided"),
        (
            rides,
            'share = 0.1\nclasses = ["long"]',
            "classes has no meaning in a regression task",
            "remove it",
        ),
    ],
)
def test_each_kind_of_task_says_what_its_decision_needs(
    task: Callable[[str], Task], lines: str, message: str, fix: str
) -> None:
    with pytest.raises(UserError) as caught:
        task(f"[exploration]\n{lines}\n")
    assert f"exploration.{message}" in caught.value.message
    assert caught.value.fix.startswith(fix)


def test_a_value_is_decided_by_a_threshold_in_its_unit() -> None:
    config = rides('[exploration]\nshare = 0.1\nlabels = "below"\nthreshold = 20.0\n').exploration
    np.testing.assert_allclose(marks(config, IDS[:2], np.array([19.5, 20.0])).propensity, [1, 0.1])


SCHEMA = Schema((), ("kind",), "t")
MODEL = ModelConfig(family="logistic", rows=256, batch_size=64, learning_rate=0.01)
ROWS, TURN = 32_000, 12_000


def loop(config: Exploration, seed: int) -> tuple[float, float, float]:
    """A feedback loop: only what scores 0.5 or more is let pass and has a label, or is explored.

    Of twenty kinds of events, ten are good and ten bad; at the turn, five of the bad ones become good. Of the last
    quarter: the mean log loss on all events, the share of good events that scored enough, and what each event let pass
    has brought, explored ones included (a good one 1, a bad one -1).
    """
    random, model = np.random.default_rng(seed), Trainer(SCHEMA, MODEL, seed, "L1", "cpu")
    losses, passed, brought = [], [], []
    for start in range(0, ROWS, 64):
        kind = random.integers(0, 20, 64)
        good = (kind < 10) | ((kind < 15) & (start >= TURN))
        label = (random.random(64) < np.where(good, 0.8, 0.05)).astype(np.float32)
        numbers, kinds = np.zeros((64, 0), np.float32), (kind + 1)[:, None] * 0x1E3779B97F4A7C15
        scores = model.score(numbers, kinds)
        ids, moments = [f"{seed}-{start + i}" for i in range(64)], np.arange(start, start + 64)
        found, begins = marks(config, ids, scores), start < 6_000  # everyone is let pass to begin with
        seen = (scores >= 0.5) | found.explored | begins
        weight = np.ones(64, np.float32) if begins else found.weight
        model.train(Batch(ids, moments, moments, numbers, kinds, scores, label, weight).take(seen))
        if start >= ROWS * 3 // 4:
            losses.append(log_loss(label, scores).mean())
            passed.append((scores[good] >= 0.5).mean())
            brought.append(((2 * label - 1) * seen).mean())
    return float(np.mean(losses)), float(np.mean(passed)), float(np.mean(brought))


def test_what_is_always_refused_is_found_to_have_become_good_only_by_exploring() -> None:
    blind, seeing = loop(NONE, 1), loop(Exploration(share=0.1), 1)
    assert blind[0] > seeing[0] + 0.05
    assert blind[1] < 0.7 < 0.8 < seeing[1]
    assert blind[2] < seeing[2]  # what exploring costs is less than what it finds

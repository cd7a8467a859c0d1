"""Segment guardrail: how often it is wrong, and that harm to a large part of the traffic stops a winner by name."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from learners.arena import Arena, Decision
from learners.batch import Batch, ModelConfig, Schema
from learners.challenger import Challenger
from learners.drift import DriftConfig
from learners.segments import Segmented, Segments
from learners.trainer import Trainer
from learners.verdict import PairedTest

ALPHA, LIMIT, STREAMS = 0.05, 0.02, 400
LARGE = tuple((0, value) for value in range(1, 6))


def fed(means: list[float], seed: int, steps: int = 30, size: int = 100) -> tuple[bool, bool]:
    """Whether harm, and whether no harm, was ever shown; `means` are how much worse the model is in each segment."""
    random, segments = np.random.default_rng(seed), Segments(("shop",), LIMIT, ALPHA)
    harm = harmless = False
    for _ in range(steps):
        values = random.integers(1, 1 + len(means), (size, 1))
        other = random.uniform(0.2, 1.0, size)
        own = other + random.normal(np.array(means)[values[:, 0] - 1], 0.1)
        segments.update(Segmented(values, LARGE[: len(means)]), other, own)
        harm |= segments.harmed is not None
        harmless |= segments.unproven is None
    return harm, harmless


def most(rate: float) -> float:
    """Three standard errors above a rate."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / STREAMS)


def test_harm_where_there_is_none_is_seen_at_most_alpha_of_the_time_over_all_segments() -> None:
    wrong = sum(fed([LIMIT] * 5, seed)[0] for seed in range(STREAMS))
    assert wrong / STREAMS <= most(ALPHA)


def test_no_harm_where_there_is_harm_is_shown_at_most_alpha_of_the_time() -> None:
    wrong = sum(fed([LIMIT, -0.2, -0.2, -0.2], seed)[1] for seed in range(STREAMS))
    assert wrong / STREAMS <= most(ALPHA)


def test_both_are_found_where_they_are() -> None:
    found = [fed([0.12, -0.1, -0.1], seed) for seed in range(20)]
    assert all(harm and not harmless for harm, harmless in found)
    assert all(fed([-0.05, -0.05, -0.05], seed) == (False, True) for seed in range(20))


def test_a_value_is_watched_from_the_step_after_it_became_large() -> None:
    segments, step = Segments(("shop",), LIMIT, ALPHA), Segmented(np.ones((50, 1), np.int64), ((0, 1),))
    segments.update(replace(step, large=()), np.zeros(50), np.ones(50))
    assert (segments.evidence(), segments.unproven) == ([], None)
    segments.update(step, np.zeros(50), np.ones(50))
    assert segments.evidence()[0]["n"] == 0
    assert segments.unproven == "where shop is 1, loss 0.0000 against 0.0000 on 0 examples"
    segments.update(step, np.zeros(50), np.ones(50))
    assert segments.harmed == "where shop is 1, loss 1.0000 against 0.0000 on 50 examples"
    assert segments.evidence()[0]["mean_difference"] == -1.0


def test_after_a_restart_all_is_as_before_and_segments_that_are_gone_are_left_out() -> None:
    random, names = np.random.default_rng(1), ("shop", "card")
    straight, again = Segments(names, LIMIT, ALPHA), Segments(names, LIMIT, ALPHA)
    step = partial(Segmented, large=((0, 1), (1, 2)))
    for part in range(4):
        values, losses = random.integers(1, 3, (60, 2)), random.random((2, 60))
        straight.update(step(values), *losses)
        if part == 1:
            again.load(json.loads(json.dumps(straight.state())))
        elif part > 1:
            again.update(step(values), *losses)
    assert again.state() == straight.state()
    fewer = Segments(("card",), LIMIT, ALPHA)
    fewer.load(straight.state())
    assert [each["segment"] for each in fewer.evidence()] == ["card"]


SCHEMA = Schema(("x",), ("shop",), "t")
STILL = ModelConfig(family="logistic", rows=64, batch_size=64, learning_rate=1e-9)
QUICK = replace(STILL, learning_rate=0.05)
TESTED = DriftConfig(min_events=200, max_events=3_000, segment_share=0.2)


def stream(rows: int, seed: int, sign: tuple[float, float]) -> Batch:
    """Shop 1 has three events in ten, shop 2 the others; the label follows x, with a sign for each shop."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(rows, 1)).astype(np.float32)
    shop = np.where(random.random(rows) < 0.3, 1, 2)
    logit = 3.0 * numbers[:, 0] * np.where(shop == 1, *sign)
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    moments, served = np.arange(rows, dtype=np.int64), np.full(rows, np.nan, np.float32)
    return Batch([f"e{i}" for i in range(rows)], moments, moments, numbers, shop[:, None], served, label)


def learned(lineage: str, sign: float, rows: int) -> Trainer:
    """A model that has learned one sign for both shops, and stays so."""
    made = Trainer(SCHEMA, QUICK, 7, lineage, "cpu")
    for start in range(0, rows, 64):
        made.train(stream(64, start, (sign, sign)))
    return made.clone(lineage, STILL)


def judged(
    segments: tuple[str, ...],
    challenger: Trainer,
    *,
    promoted: bool = False,
    rule: tuple[float, float] = (1.0, -1.0),
    champion: float = 1.0,
) -> list[Decision]:
    """What an arena decides about a challenger; `champion` is the sign that its champion has learned."""
    ring = Arena(SCHEMA, STILL, STILL, TESTED, 7, device="cpu", segments=segments, window=1_000)
    ring.champion = learned("L1", champion, 2_000)
    ring.observe(stream(1_000, 5, rule), 0)
    ring.born(STILL, 7)
    trial = Challenger(challenger, "warm", "ranks-1", PairedTest(0.003, 0.0005, min_events=200))
    ring.trials.challengers = [replace(trial, segments=ring.trials.harm())]
    if promoted:
        ring.approve("L2", 0, 0)
    events = ring.observe(stream(3_000, 6, rule), 0)
    return [event for event in events if isinstance(event, Decision) and event.action != "freeze"]


def test_a_winner_that_harms_a_large_segment_is_not_promoted_and_the_decision_says_which() -> None:
    turned = learned("L2", -1.0, 2_000)  # right for shop 2, wrong for shop 1
    assert judged((), turned)[0].action == "promote"
    [decision] = judged(("shop",), turned)
    assert (decision.action, decision.lineage) == ("reject", "L2")
    assert "does harm where shop is 1, loss" in decision.reason
    assert decision.evidence["mean_difference"] > 0.0
    harm = {each["segment_value"]: each["e_value_harm"] for each in decision.evidence["segments"]}
    assert harm[1] > 300 > harm[2]


def test_a_winner_that_harms_nobody_is_promoted_once_that_is_shown_for_every_large_segment() -> None:
    [decision] = judged(("shop",), learned("L2", 1.0, 2_000), rule=(1.0, 1.0), champion=-1.0)
    assert decision.action == "promote"
    shown = {each["segment_value"]: each["e_value_no_harm"] for each in decision.evidence["segments"]}
    assert sorted(shown) == [1, 2]
    assert min(shown.values()) > 300


@pytest.mark.parametrize("segments", [(), ("shop",)])
def test_what_a_person_promotes_is_rolled_back_for_the_segment(segments: tuple[str, ...]) -> None:
    made = judged(segments, learned("L2", -1.0, 2_000), promoted=True)
    assert [decision.action for decision in made] == (["rollback"] if segments else [])

"""The arena on small real models: drift, alert, trial, verdict; silence without drift; exact restarts."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from learners.arena import Arena, Decision, Event, MetricRow
from learners.batch import Batch, ModelConfig, Schema
from learners.challenger import Now
from learners.drift import Alert, DriftConfig
from learners.entrants import MOST
from learners.packing import unpack
from learners.prequential import log_loss
from learners.trainer import Trainer

SCHEMA = Schema(("x0", "x1", "x2", "x3"), ("a",), "t")
CHAMPION = ModelConfig(family="logistic", rows=64, batch_size=128, learning_rate=0.003)
CHALLENGER = replace(CHAMPION, learning_rate=0.03)
DRIFT = DriftConfig(min_events=500, max_events=4_000, cooldown=2_000, window=500)
ROWS, CHANGE, SECOND = 12_000, 8_000, 1_000
ALERT = Alert("adwin-1", "adwin", "loss", "log_loss", 0.1, 0.05, "e1", SECOND, SECOND, "L1.0", "it rose")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def stream(seed: int, change: int = CHANGE, rows: int = ROWS) -> Batch:
    """One event a second. The label follows a logistic rule whose signs turn at row `change`; inputs stay."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(rows, 4)).astype(np.float32)
    category = random.integers(1, 20, rows)
    sign = np.where(np.arange(rows) < change, 1.0, -1.0)
    logit = sign * (numbers @ np.array([1.2, -0.9, 0.6, 0.0]) + np.where(category % 2 == 0, 0.7, -0.7)) - 0.5
    label = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    moments = np.arange(rows, dtype=np.int64) * SECOND
    categories = category[:, None] * 0x1E3779B97F4A7C15
    unserved = np.full(rows, np.nan, np.float32)
    return Batch([f"e{i}" for i in range(rows)], moments, moments + 5, numbers, categories, unserved, label)


def arena(
    drift: DriftConfig = DRIFT,
    challenger: ModelConfig = CHALLENGER,
    champion: ModelConfig = CHAMPION,
    **settings: Any,
) -> Arena:
    usual: dict[str, Any] = {"freeze_at_ms": (CHANGE - 500) * SECOND, "window": 1_000, "device": "cpu"}
    return Arena(SCHEMA, champion, challenger, drift, 7, **(usual | settings))


def feed(arena: Arena, batch: Batch, step: int = 128) -> list[Event]:
    """Observe in slices of one champion's batch; the clock is the number of rows seen."""
    events: list[Event] = []
    for start in range(0, len(batch), step):
        part = batch.slice(start, min(start + step, len(batch)))
        events += arena.observe(part, created_ms=arena.examples + len(part))
    return events


def now(ring: Arena) -> Now:
    return Now(ring.examples * SECOND, ring.examples)


def decisions(events: Iterable[Event]) -> list[Decision]:
    return [event for event in events if isinstance(event, Decision)]


def actions(events: Iterable[Event]) -> list[str]:
    return [decision.action for decision in decisions(events)]


def last_row(events: Iterable[Event], arm: str) -> MetricRow:
    return [event for event in events if isinstance(event, MetricRow) and event.arm == arm][-1]


def alerts(events: Iterable[Event]) -> list[Alert]:
    return [event for event in events if isinstance(event, Alert)]


def split_at(arena: Arena, batch: Batch, action: str) -> tuple[int, list[Event]]:
    """Feed until the first decision of this kind; rows used, and the events so far."""
    events: list[Event] = []
    for start in range(0, len(batch), 128):
        events += feed(arena, batch.slice(start, min(start + 128, len(batch))))
        if action in actions(events):
            return arena.examples, events
    pytest.fail(f"no {action} in {len(batch)} rows")


@pytest.mark.parametrize("seed", range(3))
def test_a_sudden_drift_leads_to_an_alert_a_trial_and_a_better_champion(seed: int) -> None:
    ring = arena()
    events = feed(ring, stream(seed))
    assert actions(events) == ["freeze", "start", "start", "promote", "retire"]
    freeze, warm, fresh, promote, retire = decisions(events)
    alert = alerts(events)[0]

    assert freeze.event_ms >= (CHANGE - 500) * SECOND > freeze.event_ms - 128 * SECOND
    assert (alert.level, alert.version) == ("loss", "L1.0")
    assert CHANGE < int(alert.alert_id.removeprefix("ranks-")) <= CHANGE + 640
    assert abs(alert.since_ms - CHANGE * SECOND) <= 256 * SECOND
    assert (warm.lineage, fresh.lineage) == ("L2", "L3")
    assert warm.evidence["alert_id"] == fresh.evidence["alert_id"] == alert.alert_id
    assert alert.message in warm.reason

    assert {promote.lineage, retire.lineage} == {"L2", "L3"}
    assert promote.champion == "L1"
    evidence = promote.evidence
    assert evidence["e_value"] >= 1 / evidence["alpha"] == pytest.approx(MOST / DRIFT.alpha)
    assert evidence["n"] >= DRIFT.min_events
    assert evidence["mean_difference"] == pytest.approx(
        evidence["champion_log_loss"] - evidence["challenger_log_loss"]
    )
    assert evidence["mean_difference"] > DRIFT.min_effect
    assert evidence["challenger_auc"] > evidence["champion_auc"]
    assert f"{evidence['n']:,} examples that neither had learned from" in promote.reason
    json.dumps([decision.evidence for decision in decisions(events)], allow_nan=False)

    assert ring.champion.lineage == promote.lineage
    champion, frozen, continuous = (last_row(events, arm) for arm in ("champion", "frozen", "continuous"))
    assert (champion.lineage, frozen.lineage, continuous.lineage) == (promote.lineage, "L1", "L1")
    assert champion.log_loss < continuous.log_loss < frozen.log_loss
    assert champion.auc > frozen.auc + 0.3
    assert ring.continuous is not None
    assert ring.continuous.examples == ROWS
    assert (ring.challengers, ring.config_of(promote.lineage)) == ([], CHALLENGER)
    assert [ring.seed_of(lineage) for lineage in ("L1", "L2", "L3")] == [7, 7, 9]
    assert ring.seed_of(ring.champion.lineage) == ring.champion.seed


def test_a_network_with_embeddings_goes_the_same_way() -> None:
    network = replace(CHAMPION, family="dcn", embedding=4, hidden=(16,))
    ring = Arena(SCHEMA, network, replace(network, learning_rate=0.02), DRIFT, 1, freeze_at_ms=7_500 * SECOND)
    events = feed(ring, stream(0))
    assert actions(events) == ["freeze", "start", "start", "promote", "retire"]
    assert last_row(events, "champion").auc > last_row(events, "frozen").auc + 0.3


def test_nothing_happens_on_a_stationary_stream() -> None:
    for seed in range(10):
        events = feed(arena(freeze_at_ms=None), stream(seed, ROWS, ROWS).slice(0, 8_000))
        assert (alerts(events), decisions(events)) == ([], [])


def test_a_rise_of_the_loss_retires_what_an_alarm_about_inputs_started() -> None:
    ring = arena(replace(DRIFT, min_events=1_000), freeze_at_ms=None)  # no verdict before the rise
    feed(ring, stream(0).slice(0, 7_936))
    ring._start([replace(ALERT, level="input")], now(ring))
    events = feed(ring, stream(0).slice(7_936, ROWS))
    assert actions(events)[:6] == [*["retire"] * 2, *["start"] * 3, "promote"]  # one of the three is a "past"
    for retired in decisions(events)[:2]:
        assert retired.lineage in ("L2", "L3")
        assert "a newer alarm" in retired.reason
    alarm = alerts(events)[0].alert_id
    assert {decision.evidence["alert_id"] for decision in decisions(events)[2:4]} == {alarm}


def test_challengers_catch_up_on_what_came_since_the_onset() -> None:
    ring = arena(freeze_at_ms=None)
    feed(ring, stream(0).slice(0, 2_048))
    ring._start([replace(ALERT, since_ms=1_500 * SECOND)], now(ring))
    assert [challenger.trainer.examples for challenger in ring.challengers] == [548, 548]
    copy = ring.champion.clone("L2", CHALLENGER)
    copy.train(stream(0).slice(1_500, 1_536))  # in the same batches as the champion
    for start in range(1_536, 2_048, 128):
        copy.train(stream(0).slice(start, start + 128))
    asked = stream(0).slice(2_048, 2_176)
    np.testing.assert_array_equal(
        ring.challengers[0].trainer.score(asked.numbers, asked.categories),
        copy.score(asked.numbers, asked.categories),
    )


def test_the_champions_metrics_are_those_of_whoever_was_it() -> None:
    """A promoted challenger brings no record of its own: it would leave out the time before its trial."""
    ring = arena(window=ROWS, metrics_every=128)
    used, events = split_at(ring, stream(0), "promote")
    before = last_row(events, "champion")
    assert before.n == used
    row = last_row(feed(ring, stream(0).slice(used, used + 128)), "champion")
    assert row.lineage == ring.champion.lineage != before.lineage
    assert row.n == used + 128
    assert row.log_loss == pytest.approx(before.log_loss, rel=0.05)


def test_a_false_alarm_promotes_nothing() -> None:
    """Challengers that learn as the champion does, which has learned all there is: no trial may end in a swap."""
    patient = replace(DRIFT, max_events=3_000)
    for seed in range(5):
        ring, batch = arena(patient, champion=CHALLENGER, freeze_at_ms=None), stream(seed, ROWS, ROWS)
        feed(ring, batch.slice(0, 8_000))
        ring._start([ALERT], now(ring))
        ended = actions(feed(ring, batch.slice(8_000, ROWS)))
        assert len(ended) == 2 and set(ended) <= {"reject", "expire"}  # noqa: PT018


def test_every_arm_scores_before_any_learns() -> None:
    batch = stream(0)
    ring = arena(metrics_every=128, freeze_at_ms=None)
    untrained = Trainer(SCHEMA, CHAMPION, 7, "L1", "cpu")
    first = batch.slice(0, 128)
    row = last_row(ring.observe(first, 0), "champion")
    expected = log_loss(first.label, untrained.score(first.numbers, first.categories)).mean()
    assert row.log_loss == pytest.approx(expected)

    used, _ = split_at(ring, batch.slice(128, ROWS), "start")
    counts = [challenger.test.count for challenger in ring.challengers]
    assert counts == [0, 0]  # not on the batch it began with
    coming = batch.slice(used, used + 128)
    arms = [ring.champion, *(challenger.trainer for challenger in ring.challengers)]
    losses = [log_loss(coming.label, arm.score(coming.numbers, coming.categories)).mean() for arm in arms]
    ring.observe(coming, 0)
    for challenger, loss in zip(ring.challengers, losses[1:], strict=True):
        assert challenger.test.count == 128
        assert challenger.test.losses == pytest.approx((losses[0], loss))


def test_the_frozen_arm_never_learns_and_continuous_is_the_champion_until_it_is_replaced() -> None:
    ring = arena()
    used, events = split_at(ring, stream(0), "freeze")
    assert ring.frozen is not None
    before = ring.frozen.score(stream(0).numbers, stream(0).categories)
    events += feed(ring, stream(0).slice(used, CHANGE))
    champion, continuous = last_row(events, "champion"), last_row(events, "continuous")
    assert replace(champion, arm="continuous") == continuous
    assert last_row(events, "frozen").n == 1_000  # it starts with the champion's record
    feed(ring, stream(0).slice(CHANGE, ROWS))
    np.testing.assert_array_equal(before, ring.frozen.score(stream(0).numbers, stream(0).categories))


def test_served_metrics_and_the_loss_alarm_are_on_what_was_served() -> None:
    batch = stream(0, ROWS, ROWS)
    # Serving goes wrong, not the model.
    served = np.where(np.arange(ROWS) < 8_000, 0.4, 0.02).astype(np.float32)
    served[::7] = np.nan
    ring = arena(champion=CHALLENGER, metrics_every=1, freeze_at_ms=None)
    events = feed(ring, replace(batch, served=served))
    row, known = last_row(events, "served"), np.flatnonzero(np.isfinite(served))[-1_000:]
    assert (row.lineage, row.n) == ("", 1_000)
    assert row.log_loss == pytest.approx(log_loss(batch.label[known], served[known]).mean())
    alert = alerts(events)[0]
    assert alert.level == "loss"
    assert abs(alert.since_ms - 8_000 * SECOND) <= 256 * SECOND
    assert "promote" not in actions(events)  # the champion itself is as good as before


@cache
def straight() -> tuple[Arena, list[Event]]:
    """A run without a stop."""
    ring = arena()
    return ring, feed(ring, stream(1))


@pytest.mark.parametrize("stop", ["early", "frozen", "before the trial", "on trial", "after it"])
def test_a_restart_changes_nothing(stop: str) -> None:
    batch, (ring, expected) = stream(1), straight()
    when = {decision.action: decision.created_ms for decision in decisions(expected)}
    at = {
        "early": 1_024,
        "frozen": when["freeze"] + 128,
        "before the trial": when["start"] - 128,
        "on trial": when["start"] + 256,
        "after it": when["promote"] + 128,
    }[stop]
    first, second = arena(), arena()
    before = feed(first, batch.slice(0, at))
    files, record = first.state()
    second.load(files, json.loads(json.dumps(record)))
    # By text: NaN is not equal to NaN.
    assert repr(before + feed(second, batch.slice(at, ROWS))) == repr(expected)
    (files, record), (other_files, other_record) = ring.state(), second.state()
    assert other_record == record
    assert other_files.keys() == files.keys()
    for name, data in files.items():
        if name.endswith(".npz"):  # the file itself carries the time it was written
            arrays, others = unpack(data), unpack(other_files[name])
            assert arrays.keys() == others.keys()
            for key, array in arrays.items():
                np.testing.assert_array_equal(array, others[key], err_msg=f"{name} {key}")
        else:
            assert data == other_files[name], name


def test_a_state_of_another_schema_is_refused_and_changes_nothing() -> None:
    ring = arena()
    other = Arena(replace(SCHEMA, fingerprint="u"), CHAMPION, CHALLENGER, DRIFT, 7, device="cpu")
    feed(ring, stream(0).slice(0, 512))
    before = other.champion
    with pytest.raises(ValueError, match="schema"):
        other.load(*ring.state())
    assert other.champion is before
    assert other.examples == 0


@pytest.mark.parametrize("policy", ["manual", "shadow"])
def test_other_policies_recommend_once_and_give_up_when_nobody_acts(policy: Any) -> None:
    ring = arena(replace(DRIFT, policy=policy, max_events=2_000))
    events = feed(ring, stream(0))
    assert "promote" not in actions(events)
    assert ring.champion.lineage == "L1"
    recommended = [decision.lineage for decision in decisions(events) if decision.action == "recommend"]
    assert len(recommended) == len(set(recommended)) > 0
    expired = {decision.lineage: decision for decision in decisions(events) if decision.action == "expire"}
    assert "nobody promoted it" in expired[recommended[0]].reason


def test_a_person_can_promote_a_recommended_challenger() -> None:
    ring = arena(replace(DRIFT, policy="manual"))
    _, events = split_at(ring, stream(0), "recommend")
    chosen = next(decision.lineage for decision in decisions(events) if decision.action == "recommend")
    with pytest.raises(KeyError):
        ring.approve("L9", 1, 2)
    promote, *others = decisions(ring.approve(chosen, 1, 2))
    assert (promote.action, promote.lineage, promote.created_ms) == ("promote", chosen, 2)
    assert "by a person" in promote.reason
    assert all(other.action == "retire" for other in others)
    assert ring.champion.lineage == chosen


def test_a_challenger_that_is_worse_is_rejected() -> None:
    wild = replace(CHALLENGER, learning_rate=100.0, optimiser="sgd", clip_norm=1e6)
    events = feed(arena(challenger=wild), stream(0))
    assert [action for action in actions(events) if action != "reject"] == ["freeze", "start", "start"]
    rejected = decisions(events)[-1]
    assert rejected.evidence["e_value_worse"] >= 1 / rejected.evidence["alpha"]
    assert rejected.evidence["mean_difference"] < 0
    assert "is worse" in rejected.reason


def test_a_challenger_that_is_hardly_better_expires() -> None:
    """Better, and by a lot, but by less than the task demands."""
    ring = arena(replace(DRIFT, min_effect=0.5, max_events=2_000))
    used, before = 8_576, feed(ring, stream(0).slice(0, 8_576))
    assert alerts(before) == []  # the loss did not rise by that much
    ring._start([replace(ALERT, since_ms=CHANGE * SECOND)], now(ring))
    expired = decisions(feed(ring, stream(0).slice(used, ROWS)))
    assert [decision.action for decision in expired] == ["expire", "expire"]
    assert all(2_000 <= decision.evidence["n"] < 2_128 for decision in expired)
    assert expired[-1].evidence["mean_difference"] > 0.01
    assert "was not clearly better" in expired[0].reason


def test_without_a_reference_the_first_lineage_ends_when_it_is_replaced() -> None:
    ring = arena(replace(DRIFT, keep_reference=False))
    used, _ = split_at(ring, stream(0), "promote")
    assert ring.continuous is None
    after = feed(ring, stream(0).slice(used, ROWS))
    assert {event.arm for event in after if isinstance(event, MetricRow)} == {"served", "champion", "frozen"}


def test_one_trial_at_a_time_and_none_within_the_cooldown() -> None:
    ring = arena(replace(DRIFT, max_events=500))
    feed(ring, stream(0, ROWS, ROWS).slice(0, 1_024))
    assert [decision.lineage for decision in decisions(ring._start([ALERT], now(ring)))] == ["L2", "L3"]
    assert ring._start([ALERT], now(ring)) == []  # on trial
    feed(ring, stream(0, ROWS, ROWS).slice(1_024, 2_048))
    assert ring.challengers == []
    assert ring._start([ALERT], now(ring)) == []  # too soon
    feed(ring, stream(0, ROWS, ROWS).slice(2_048, 3_200))
    assert [decision.lineage for decision in decisions(ring._start([ALERT], now(ring)))] == ["L4", "L5"]


def test_after_a_promotion_the_next_warm_challenger_learns_in_the_other_way() -> None:
    ring = arena(replace(DRIFT, max_events=500))
    used, _ = split_at(ring, stream(0), "promote")
    feed(ring, stream(0).slice(used, used + 2_048))
    assert ring.champion.config.learning_rate == CHALLENGER.learning_rate
    ring._start([ALERT], now(ring))
    assert ring.config_of("L4").learning_rate == CHAMPION.learning_rate
    assert ring.config_of("L5").learning_rate == CHALLENGER.learning_rate


def test_long_batches_are_worked_off_in_steps_and_odd_labels_are_left_out() -> None:
    batch = stream(0).slice(0, 1_024)
    at_once, stepwise = arena(), arena()
    assert at_once.observe(batch, 5) == [
        replace(event, created_ms=5) if isinstance(event, MetricRow) else event
        for event in feed(stepwise, batch)
    ]
    assert at_once.champion.state() == stepwise.champion.state()
    label = batch.label.copy()
    label[[3, 5]] = [np.nan, 0.5]
    ring = arena()
    ring.observe(replace(batch, label=label), 5)
    assert ring.examples == 1_022
    assert ring.champion.dropped == 0
    assert ring.observe(Batch.empty(SCHEMA), 6) == []

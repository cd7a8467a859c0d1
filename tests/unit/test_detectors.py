"""One drift, one alert, whichever detectors notice it; and how the drift benchmark counts alarms."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import _drift_peers as peers
from learners.batch import Batch, Schema
from learners.detectors import Detectors
from learners.drift import Affected, Alert, DriftConfig
from learners.packing import pack, unpack

SCHEMA = Schema(("x",), (), "t")
CONFIG = DriftConfig(window=500, cooldown=3_000)
CHANGE = 12_000


def stream(rows: int, moved: int, worse: int) -> tuple[Batch, np.ndarray]:
    """One event a second: the input moves at row `moved`, and losses rise at row `worse`."""
    random = np.random.default_rng(3)
    numbers = random.normal(size=(rows, 1)).astype(np.float32)
    numbers[moved:] += 3
    losses = random.exponential(0.3, rows)
    losses[worse:] += 0.5
    moments = np.arange(rows, dtype=np.int64) * 1_000
    nothing = np.zeros(rows, np.float32)
    empty = np.zeros((rows, 0), np.int64)
    return Batch([f"e{i}" for i in range(rows)], moments, moments, numbers, empty, nothing, nothing), losses


def feed(
    detectors: Detectors,
    batch: Batch,
    losses: np.ndarray,
    start: int = 0,
    version: str = "L1.0",
    episode: str = "",
    acted_on: list[Alert] | None = None,
) -> list[Alert]:
    found = []
    for first in range(start, len(batch), 250):
        part = batch.slice(first, first + 250)
        scores = np.random.default_rng(first).random(len(part))
        found += detectors.update(part, scores, losses[first : first + 250], version, episode=episode)
        if acted_on is not None:
            acted_on += detectors.due
    return found


def test_an_alarm_of_the_loss_after_one_about_inputs_is_the_same_drift_told_again() -> None:
    alerts = feed(Detectors(SCHEMA, CONFIG), *stream(18_000, CHANGE, CHANGE + 1_500))
    assert [alert.level for alert in alerts] == ["input", "loss"]
    assert len({alert.alert_id for alert in alerts}) == 1
    assert alerts[1].since_ms > alerts[0].since_ms


def test_an_alarm_about_inputs_after_one_of_the_loss_is_no_news() -> None:
    alerts = feed(Detectors(SCHEMA, CONFIG), *stream(15_000, CHANGE, CHANGE))
    assert [alert.level for alert in alerts] == ["loss"]


def test_what_comes_after_the_cooldown_is_another_drift() -> None:
    alerts = feed(Detectors(SCHEMA, CONFIG), *stream(22_000, CHANGE, CHANGE + 6_000))
    assert [alert.level for alert in alerts] == ["input", "loss"]
    assert len({alert.alert_id for alert in alerts}) == 2


def warning(since: int, until: int) -> Alert:
    """What the watch of served events says of an input that moved, by the rows of the stream."""
    moved = Affected("x", 0.9, "3 in the middle instead of 0")
    times = since * 1_000, until * 1_000
    return Alert(
        "psi-9",
        "psi",
        "input",
        "x",
        1.0,
        0.3,
        f"e{since}",
        *times,
        "L1.0",
        "x is 3",
        0.9,
        (moved,),
        {"large": 1},
    )


def test_a_warning_is_told_at_once_and_is_an_alarm_when_the_labels_come() -> None:
    batch, losses = stream(18_000, 18_000, CHANGE + 500)
    detectors = Detectors(SCHEMA, CONFIG, served=True)
    assert feed(detectors, batch.slice(0, 6_000), losses) == []
    told = warning(CHANGE, CHANGE + 800)  # the labels are 6,000 events behind
    assert detectors.warned(told) == told
    assert feed(detectors, batch.slice(0, CHANGE), losses, 6_000) == []
    assert detectors.due == []
    (alert,) = feed(detectors, batch.slice(0, CHANGE + 250), losses, CHANGE) or detectors.due
    assert alert == replace(told, details={})
    (alert,) = feed(detectors, batch, losses, CHANGE + 250)
    assert (alert.alert_id, alert.level, alert.features) == ("psi-9", "loss", told.features)
    assert detectors.due == []


def test_a_warning_about_the_drift_of_a_loss_alarm_is_no_news_and_one_about_later_events_is() -> None:
    batch, losses = stream(18_000, 18_000, CHANGE)
    detectors = Detectors(SCHEMA, CONFIG, served=True)
    (alert,) = feed(detectors, batch.slice(0, CHANGE + 1_000), losses)
    assert detectors.warned(warning(CHANGE, CHANGE + 600)) is None
    later = warning(alert.event_ms // 1_000 + 5_000, alert.event_ms // 1_000 + 6_000)
    assert detectors.warned(later) == later


def test_who_does_not_watch_inputs_is_silent_about_them() -> None:
    assert feed(Detectors(SCHEMA, CONFIG, served=True), *stream(18_000, CHANGE, 18_000)) == []


@pytest.mark.parametrize("stop", [12_250, 13_250, 14_000])
def test_a_restart_changes_nothing(stop: int) -> None:
    batch, losses = stream(18_000, CHANGE, CHANGE + 1_500)
    first, second = Detectors(SCHEMA, CONFIG), Detectors(SCHEMA, CONFIG)
    before = feed(first, batch.slice(0, stop), losses)
    first.warned(warning(30_000, 31_000))
    second.load(unpack(pack(first.state())))
    assert pack(second.state()) == pack(first.state())
    assert before + feed(second, batch, losses, stop) == feed(Detectors(SCHEMA, CONFIG), batch, losses)


def test_one_alarm_hits_a_change_and_every_other_one_is_false() -> None:
    changes = [(100, 150), (400, 400)]
    found = peers.score([50, 180, 200, 420, 600], changes, window=100)
    assert (found.hits, found.false, found.missed, found.delays) == (2, 3, 0, (80, 20))
    assert found.f1 == pytest.approx(4 / 7)
    assert peers.score([], changes, 100).f1 == 0.0
    assert (peers.score([], [], 100).f1, peers.score([5], [], 100).f1) == (1.0, 0.0)
    assert peers.score([401], [(100, 390), (400, 400)], 100).delays == (1,)  # the next change takes over
    assert peers.spaced([10, 20, 35, 36], 15) == [10, 35]


def test_the_quick_kswin_fires_as_rivers_does() -> None:
    from river.drift import KSWIN

    random = np.random.default_rng(1)
    values = np.round(random.random(1_500) + 0.4 * (np.arange(1_500) > 800), 1)  # with ties
    slow = peers.alarms_of(KSWIN(seed=3), values)
    assert slow
    assert peers.alarms_of(peers.kswin(3), values) == slow


@pytest.mark.parametrize(("episode", "alarms"), [("", 1), ("ranks-9", 0)])
def test_scores_that_are_off_while_an_alert_is_followed_are_no_news(episode: str, alarms: int) -> None:
    random = np.random.default_rng(5)
    rows, change = 40_000, 26_000
    logit = random.normal(-1.9, 1, rows)
    odds = np.exp(logit + (np.arange(rows) >= change))
    scores, label = 1 / (1 + np.exp(-logit)), (random.random(rows) < odds / (1 + odds)).astype(np.float32)
    batch = replace(stream(rows, rows, rows)[0], label=label, served=scores.astype(np.float32))
    detectors, found = Detectors(SCHEMA, CONFIG, served=True), list[Alert]()
    for first in range(0, rows, 250):
        part, said = batch.slice(first, first + 250), scores[first : first + 250]
        found += detectors.update(part, said, np.full(len(part), 0.5), "L2.0", episode=episode)
    assert [alert.detector for alert in found] == ["calibration"] * alarms


def test_what_another_model_served_says_nothing_about_the_live_one() -> None:
    rows, swap = 24_000, 8_000
    batch, losses = stream(rows, rows, rows)
    lineage = np.full(rows, 1, np.int32)
    lineage[swap:] = np.where(
        np.arange(rows - swap) % 2, 2, 1
    )  # every second label is still of the model before
    wrong = np.where(np.arange(rows) >= 16_000, 3.0 * (lineage == 1), 0.0) + losses
    for known, alarms in ((lineage, 0), (np.zeros_like(lineage), 1)):
        detectors, told = Detectors(SCHEMA, CONFIG, served=True), replace(batch, lineage=known)
        assert feed(detectors, told.slice(0, swap), wrong) == []
        detectors.swapped()
        assert len(feed(detectors, told, wrong, swap, "L2.0")) == alarms


def rises(*steps: tuple[int, float]) -> tuple[Batch, np.ndarray]:
    """Losses that change by so much at each row."""
    batch, losses = stream(26_000, 26_000, 26_000)
    for row, by in steps:
        losses[row:] += by
    return batch, losses


def test_a_loss_that_rises_further_while_its_alert_is_followed_is_the_same_drift() -> None:
    batch, losses = rises((CHANGE, 0.3), (CHANGE + 5_000, 0.3))
    alone = feed(Detectors(SCHEMA, CONFIG), batch, losses)
    assert [alert.details["further"] for alert in alone] == [False, True]
    detectors, acted_on = Detectors(SCHEMA, CONFIG), list[Alert]()
    (first,) = feed(detectors, batch.slice(0, CHANGE + 3_000), losses)
    assert feed(detectors, batch, losses, CHANGE + 3_000, "L1.0", first.alert_id, acted_on) == []
    assert [(alert.alert_id, alert.since_ms) for alert in acted_on] == [(first.alert_id, alone[1].since_ms)]


@pytest.mark.parametrize(("until", "told"), [(CHANGE + 4_000, True), (CHANGE + 6_500, False)])
def test_where_labels_are_late_it_counts_what_was_served_while_an_alert_was_followed(
    until: int, told: bool
) -> None:
    batch, losses = rises((CHANGE, 0.3), (CHANGE + 5_000, 0.3))
    late = (
        2_000  # rows by which labels come after their events: the second rise is labelled when nobody follows
    )
    batch = replace(batch, known_ms=batch.event_ms + late * 1_000)
    detectors, acted_on, end = Detectors(SCHEMA, CONFIG), list[Alert](), until - late
    (first,) = feed(detectors, batch.slice(0, CHANGE + 1_000), losses)
    assert feed(detectors, batch.slice(0, end), losses, CHANGE + 1_000, "L1.0", first.alert_id) == []
    restarted = Detectors(SCHEMA, CONFIG)
    restarted.load(unpack(pack(detectors.state())))
    then = feed(restarted, batch, losses, end, acted_on=acted_on)
    assert ([alert.details["further"] for alert in then], len(acted_on)) == ([told] * told, 1 - told)
    assert {alert.alert_id for alert in acted_on} <= {first.alert_id}


def test_a_loss_that_recovered_and_rises_is_another_drift_even_while_an_alert_is_followed() -> None:
    batch, losses = rises((CHANGE, 0.5), (CHANGE + 3_000, -0.5), (CHANGE + 8_000, 0.5))
    detectors = Detectors(SCHEMA, CONFIG)
    (first,) = feed(detectors, batch.slice(0, CHANGE + 3_000), losses)
    (second,) = feed(detectors, batch, losses, CHANGE + 3_000, "L1.0", first.alert_id)
    assert second.alert_id != first.alert_id
    assert abs(second.since_ms // 1_000 - CHANGE - 8_000) < 200


def test_inputs_that_move_while_an_alert_of_the_loss_is_followed_are_news() -> None:
    batch, losses = stream(22_000, CHANGE + 6_000, CHANGE)
    detectors = Detectors(SCHEMA, CONFIG)
    (first,) = feed(detectors, batch.slice(0, CHANGE + 3_000), losses)
    (second,) = feed(detectors, batch, losses, CHANGE + 3_000, "L1.0", first.alert_id)
    assert (first.level, second.level) == ("loss", "input")

"""The input and score detector: silent where nothing changed, quick where something did, exact restarts."""

import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from learners.batch import Batch, Schema
from learners.drift import Alert, DriftConfig
from learners.packing import pack, unpack
from learners.psi import Bins, psi_noise
from learners.shift import BLOCKS, SMALLEST_HABIT, SMALLEST_REFERENCE, ShiftDetector

NUMBERS = ("amount", "count_7d", "mean_7d", "night", "hour_sin", "seldom")
SCHEMA = Schema(NUMBERS, ("country", "device"), "t")
CONFIG = DriftConfig()
DAY_MS, EVENTS_A_DAY, CUSTOMERS = 86_400_000, 5_000, 400
WINDOW = CONFIG.window
FIRST = SMALLEST_REFERENCE // BLOCKS  # windows until there is a reference


@cache
def payments(seed: int, n: int) -> tuple[Batch, np.ndarray]:
    """A stationary stream with all that must not alarm, and its scores.

    Amounts and the pace follow the hour, windows of 7 days fill up from nothing, one column is the clock,
    one is mostly missing; categories have a few frequent and thousands of rare values.
    """
    random = np.random.default_rng(seed)
    moments = np.sort(random.random(2 * n) * 2 * n / EVENTS_A_DAY)  # in days, then thinned by the hour
    kept = random.random(2 * n) < 0.5 + 0.4 * np.sin(2 * np.pi * moments)
    days = np.resize(moments[kept], n)
    days[kept.sum() :] += moments[-1]
    hour = 2 * np.pi * days
    customer = random.integers(0, CUSTOMERS, n)
    amount = np.exp(random.normal(3 + 0.3 * np.sin(hour), 1))
    count, mean = np.zeros(n), np.full(n, np.nan)
    for each in range(CUSTOMERS):
        rows = np.flatnonzero(customer == each)
        first = np.searchsorted(days[rows], days[rows] - 7)
        sums = np.concatenate([[0], np.cumsum(amount[rows])])
        count[rows] = np.arange(len(rows)) - first
        mean[rows] = (sums[:-1] - sums[first])[: len(rows)] / np.maximum(count[rows], 1)
    mean[count == 0] = np.nan
    seldom = np.where(random.random(n) < 0.9, np.nan, random.normal(size=n))
    numbers = np.stack([amount, count, mean, np.sin(hour) < 0, np.sin(hour), seldom], 1).astype(np.float32)
    country = random.choice([0, 11, 12, 13, 14], n, p=[0.05, 0.5, 0.3, 0.1, 0.05])
    categories = np.stack([country, random.zipf(1.5, n) % 100_000 + 1], 1) * 0x1E3779B97F4A7C15
    ms = (days * DAY_MS).astype(np.int64)
    nothing = np.zeros(n, np.float32)
    batch = Batch([f"p{i}" for i in range(n)], ms, ms, numbers, categories, nothing, nothing)
    return batch, random.beta(1, 50, n).astype(np.float32)


def changed(batch: Batch, at: int, column: str, value: np.ndarray | float) -> Batch:
    """The same rows with one number column replaced from row `at` on."""
    numbers = batch.numbers.copy()
    numbers[at:, NUMBERS.index(column)] = value
    return Batch(
        batch.event_ids, batch.event_ms, batch.known_ms, numbers, batch.categories, batch.served, batch.label
    )


def feed(
    detector: ShiftDetector,
    batch: Batch,
    scores: np.ndarray,
    step: int = 500,
    learned: np.ndarray | None = None,
) -> list[Alert]:
    """`learned` [n]: from how many examples what gave each score had learned."""
    learned = np.zeros(len(batch), np.int64) if learned is None else learned
    parts = [slice(start, min(start + step, len(batch))) for start in range(0, len(batch), step)]
    return [
        alert
        for part in parts
        for alert in detector.update(
            batch.slice(part.start, part.stop), scores[part], "L1.3", int(learned[part][-1])
        )
    ]


LEAP, AGAIN = 14_000, 40_000


def leaping(before: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """A stream, its scores, and from how many examples what gave them had learned: until `LEAP` from `before`.

    With the leap scores are other ones. At `AGAIN` they move while the model stays.
    """
    batch, scores = payments(0, 50_000)
    at = np.arange(50_000)
    scores = np.where(at < LEAP, scores, 3 * scores)
    return batch, np.where(at < AGAIN, scores, 3 * scores), np.where(at < LEAP, before, at)


def seen_at(alert: Alert) -> int:
    return int(alert.alert_id.rpartition("-")[2])


def test_no_alarm_on_a_stationary_stream_with_a_cold_start_and_a_daily_cycle() -> None:
    alerts = [
        alert for seed in range(20) for alert in feed(ShiftDetector(SCHEMA, CONFIG), *payments(seed, 40_000))
    ]
    assert alerts == []  # in 800,000 examples: 800 windows of 8 columns


@pytest.mark.parametrize("seed", range(5))
def test_a_unit_change_is_one_alert_within_two_windows(seed: int) -> None:
    batch, scores = payments(seed, 40_000)
    at = 25_300
    cents = changed(batch, at, "amount", batch.numbers[at:, 0] * 100)
    alert, *more = feed(ShiftDetector(SCHEMA, CONFIG), cents, scores)
    assert at < seen_at(alert) <= at + 2 * WINDOW
    assert (alert.detector, alert.level, alert.subject, alert.version) == ("psi", "input", "amount", "L1.3")
    assert alert.strength > alert.threshold > CONFIG.psi_threshold
    assert abs(int(alert.since_event_id[1:]) - at) <= 20
    assert alert.since_ms == batch.event_ms[int(alert.since_event_id[1:])]
    assert alert.event_ms == batch.event_ms[seen_at(alert) - 1]
    assert all(seen_at(other) - seen_at(alert) > CONFIG.cooldown for other in more)


def test_a_doubled_amount_is_seen_within_two_windows() -> None:
    for seed in range(5):
        batch, scores = payments(seed, 40_000)
        doubled = changed(batch, 25_300, "amount", batch.numbers[25_300:, 0] * 2)
        alert = feed(ShiftDetector(SCHEMA, CONFIG), doubled, scores)[0]
        assert 25_300 < seen_at(alert) <= 25_300 + 2 * WINDOW
        assert alert.subject == "amount"


def test_a_column_that_goes_missing_is_an_alert_and_so_is_its_return() -> None:
    batch, scores = payments(0, 40_000)
    gone = changed(batch, 20_000, "amount", np.nan)
    back = changed(gone, 32_000, "amount", batch.numbers[32_000:, 0])
    first, second = feed(ShiftDetector(SCHEMA, CONFIG), back, scores)
    assert first.subject == second.subject == "amount"
    assert 20_000 < seen_at(first) <= 22_000
    assert 32_000 < seen_at(second) <= 34_000


def test_that_a_column_gets_its_first_values_is_no_alarm_but_a_shift_of_them_later_is_one() -> None:
    batch, scores = payments(0, 60_000)
    begins = changed(batch, 0, "seldom", np.nan)
    values = np.random.default_rng(0).normal(size=42_500)
    begins = changed(begins, 17_500, "seldom", values)
    assert feed(ShiftDetector(SCHEMA, CONFIG), begins, scores) == []
    shifted = changed(begins, 52_500, "seldom", values[35_000:] + 2.0)
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), shifted, scores)
    assert alert.subject == "seldom"
    assert 52_500 < seen_at(alert) <= 52_500 + 2 * WINDOW


def test_a_new_frequent_category_is_an_alert_though_the_column_has_thousands_of_rare_ones() -> None:
    batch, scores = payments(0, 30_000)
    categories = batch.categories.copy()
    new = np.random.default_rng(0).random(30_000) < 0.3
    new[:20_000] = False
    categories[new, 1] = 0x5DEECE66D
    part = Batch(
        batch.event_ids, batch.event_ms, batch.known_ms, batch.numbers, categories, batch.served, batch.label
    )
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), part, scores)
    assert (alert.level, alert.subject) == ("input", "device")
    assert seen_at(alert) <= 22_000


def test_a_value_never_seen_before_in_a_tenth_of_events_is_said() -> None:
    batch, scores = payments(0, 24_000)
    categories = batch.categories.copy()
    new = np.random.default_rng(0).random(24_000) < 0.1
    new[:20_000] = False
    categories[new, 0] = 0x5DEECE66D
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), replace(batch, categories=categories), scores)
    assert (alert.detector, alert.subject, alert.level) == ("new_values", "country", "input")
    assert 20_000 < seen_at(alert) <= 21_000
    assert abs(int(alert.since_event_id[1:]) - 20_000) <= 100
    assert re.fullmatch(r"country is a value never seen before in (9|1[0-2])\..% of events", alert.message)
    assert alert.severity == pytest.approx(0.1, abs=0.03)


def test_a_few_missing_values_where_there_were_none_are_said() -> None:
    batch, scores = payments(0, 24_000)
    gone = np.random.default_rng(0).random(4_000) < 0.05
    holes = changed(batch, 20_000, "amount", np.where(gone, np.nan, batch.numbers[20_000:, 0]))
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), holes, scores)
    assert (alert.detector, alert.subject) == ("missing", "amount")
    assert 20_000 < seen_at(alert) <= 21_500
    assert "of events instead of 0.0%" in alert.message


def test_the_alert_says_that_the_units_changed_and_carries_its_evidence() -> None:
    batch, scores = payments(0, 24_000)
    cents = changed(batch, 20_000, "amount", batch.numbers[20_000:, 0] * 100)
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), cents, scores)
    assert alert.message == "amount is about 100 times larger"
    assert alert.features[0].name == "amount"
    assert alert.features[0].severity == alert.severity > 0.5
    details = json.loads(json.dumps(alert.details))
    effect, threshold, evidence = details["effect_threshold_evidence"]["psi.amount"]
    assert (effect, threshold) == (alert.strength, alert.threshold)
    statistics = (
        2 * 8 + 2 + 1
    )  # PSI and missing values of 5 numbers, score, 2 categories; new values of these; joint
    assert evidence >= details["evidence_needed"] == 2 * CONFIG.false_alarms_per / 125 * statistics
    column = details["columns"]["amount"]
    assert [sum(shares) for shares in column["shares"]] == pytest.approx([1.0, 1.0])
    assert column["kolmogorov_smirnov"] > 0.5


def test_moved_scores_alone_are_an_alert_on_the_score() -> None:
    batch, scores = payments(0, 30_000)
    moved = np.where(np.arange(30_000) < 20_000, scores, 3 * scores)
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), batch, moved)
    assert (alert.level, alert.subject) == ("score", "score")


def test_scores_that_move_since_the_model_has_leapt_are_no_shift_and_are_watched_again_later() -> None:
    batch, scores, learned = leaping(3_000)
    alerts = feed(ShiftDetector(SCHEMA, CONFIG), batch, scores, learned=learned)
    assert [(alert.level, alert.subject) for alert in alerts] == [("score", "score")]
    assert AGAIN < seen_at(alerts[0]) <= AGAIN + 2 * WINDOW
    batch, scores, learned = leaping(8_000)  # not twice as much: nothing that the model has learned says why
    alerts = feed(ShiftDetector(SCHEMA, CONFIG), batch, scores, learned=learned)
    assert LEAP < seen_at(alerts[0]) <= LEAP + 2 * WINDOW
    assert len(alerts) == 2


def test_a_model_that_learns_all_the_time_does_not_leap() -> None:
    batch, scores = payments(0, 24_000)
    moved = np.where(np.arange(24_000) < 14_000, scores, 3 * scores)
    none, always = (ShiftDetector(SCHEMA, CONFIG) for _ in range(2))
    steady = np.maximum(np.arange(24_000) - 416, 0)
    assert feed(none, batch, moved) == feed(always, batch, moved, learned=steady) != []


def test_inputs_are_watched_while_scores_begin_anew() -> None:
    batch, scores, learned = leaping(3_000)
    cents = changed(batch, LEAP + 200, "amount", batch.numbers[LEAP + 200 :, 0] * 100)
    watch = ShiftDetector(SCHEMA, CONFIG)
    (alert,) = feed(watch, cents.slice(0, 20_000), scores[:20_000], learned=learned[:20_000])
    assert alert.subject == "amount"
    assert "score" not in {each.name for each in alert.features}
    assert LEAP < seen_at(alert) <= LEAP + 2 * WINDOW
    feed(watch, cents.slice(20_000, 21_000), scores[20_000:21_000])
    assert "score" in watch.psi()  # what it is compared with is of after the leap by now


def test_several_columns_that_move_at_once_are_one_alert_that_names_them() -> None:
    batch, scores = payments(0, 30_000)
    both = changed(changed(batch, 20_000, "amount", 1e6), 20_000, "seldom", 3.0)
    (alert,) = feed(ShiftDetector(SCHEMA, CONFIG), both, scores)
    assert {each.name for each in alert.features} == {"amount", "seldom"}
    assert alert.severity == alert.features[0].severity > alert.features[1].severity


def test_the_clock_and_ignored_columns_are_not_watched() -> None:
    batch, scores = payments(0, 30_000)
    watch = ShiftDetector(SCHEMA, DriftConfig(ignore=("hour_sin", "amount", "device")))
    assert feed(watch, changed(batch, 20_000, "amount", 1e6), scores) == []
    assert list(watch.psi()) == ["count_7d", "mean_7d", "night", "seldom", "score", "country"]


def test_psi_of_the_newest_window_is_there_once_there_is_a_reference() -> None:
    batch, scores = payments(0, 30_000)
    watch = ShiftDetector(SCHEMA, CONFIG)
    feed(watch, batch.slice(0, FIRST * WINDOW), scores)
    assert watch.psi() == {}
    feed(watch, batch.slice(FIRST * WINDOW, 12_000), scores[FIRST * WINDOW :])
    values = watch.psi()
    assert set(values) == {*NUMBERS, "score", "country", "device"} - {"hour_sin"}
    assert all(0 <= value < 0.2 for name, value in values.items() if name in ("score", "country", "device"))


def test_no_alarm_before_the_habit_is_known_or_after_a_swap_has_reset_what_is_normal() -> None:
    batch, scores = payments(0, 30_000)
    early = (FIRST + SMALLEST_HABIT - 2) * WINDOW
    alerts = feed(ShiftDetector(SCHEMA, CONFIG), changed(batch, early - 500, "amount", 1e6), scores)
    assert alerts == []
    watch, moved = ShiftDetector(SCHEMA, CONFIG), changed(batch, 20_000, "amount", 1e6)
    feed(watch, moved.slice(0, 20_000), scores[:20_000])
    watch.swapped()
    assert feed(watch, moved.slice(20_000, 30_000), scores[20_000:]) == []


@pytest.mark.parametrize("step", [7, 999, 12_000])
def test_how_the_stream_is_sliced_changes_nothing(step: int) -> None:
    batch, scores = payments(0, 24_000)
    moved = changed(batch, 20_300, "amount", batch.numbers[20_300:, 0] * 100)
    one, other = ShiftDetector(SCHEMA, CONFIG), ShiftDetector(SCHEMA, CONFIG)
    assert feed(one, moved, scores, step) == feed(other, moved, scores, 500) != []
    assert one.psi() == other.psi()


@pytest.mark.parametrize("stop", [0, 3_500, 14_250, 20_500, 23_100])
def test_a_restart_changes_nothing(stop: int) -> None:
    batch, scores = payments(1, 34_000)
    learned = np.where(np.arange(34_000) < LEAP, 3_000, 14_000)
    moved = changed(batch, 20_300, "amount", batch.numbers[20_300:, 0] * 100)
    straight, first, second = (ShiftDetector(SCHEMA, CONFIG) for _ in range(3))
    before = feed(first, moved.slice(0, stop), scores[:stop], learned=learned[:stop])
    second.load(unpack(pack(first.state())))
    after = feed(second, moved.slice(stop, 34_000), scores[stop:], learned=learned[stop:])
    assert before + after == feed(straight, moved, scores, learned=learned) != []
    for name, array in straight.state().items():
        np.testing.assert_array_equal(array, second.state()[name], err_msg=name)


def test_psi_under_no_change_is_distributed_as_the_noise_says() -> None:
    random, current, reference = np.random.default_rng(0), 1_000, 8_000
    numbers = random.random((reference, 40)).astype(np.float32)
    nothing = np.zeros((reference, 0), np.int64)
    bins = Bins(numbers, nothing)
    before = bins.shares(bins.histogram(bins.codes(numbers, nothing)))
    draws = []
    for _ in range(100):
        sample = random.random((current, 40)).astype(np.float32)
        now = bins.shares(bins.histogram(bins.codes(sample, nothing[:current])))
        draws += bins.psi(now, before).tolist()
    assert bins.counts.tolist() == [13] * 40
    assert np.mean(draws) == pytest.approx(12 * (1 / current + 1 / reference), rel=0.03)
    assert np.mean(np.array(draws) > psi_noise(13, current, reference, 0.01)) < 0.01


def coded(numbers: list[float], values: list[float]) -> list[int]:
    """Bins of values of one number column whose reference is `numbers`."""
    bins = Bins(np.array(numbers, np.float32)[:, None], np.zeros((len(numbers), 0), np.int64))
    found = bins.codes(np.array(values, np.float32)[:, None], np.zeros((len(values), 0), np.int64))[:, 0]
    assert bins.used[found].all()
    return [int(code) for code in found]


def test_number_bins() -> None:
    values = [float(i) for i in range(1_000)]
    found = coded(values, values)
    assert np.bincount(found, minlength=13).tolist()[1:11] == pytest.approx([100] * 10, abs=1)
    outside = coded(values, [-5, 2_000, np.nan])
    assert len(set(outside)) == 3
    assert not set(outside) & set(found)
    assert len(set(coded([3.0] * 50, [2.9, 3, 3.1, np.nan]))) == 4
    assert len(set(coded([np.nan] * 50, [1, np.nan]))) == 2


def test_category_bins() -> None:
    values = np.repeat(np.arange(-3, 4, dtype=np.int64), 10)[:, None]
    none = np.zeros((len(values), 0), np.float32)
    bins = Bins(none, values)
    codes = set(bins.codes(none, values).ravel().tolist())
    assert len(codes) == 7  # six values and "missing"
    rare = bins.codes(none[:3], np.array([[99], [-(2**63)], [2**63 - 1]], np.int64)).ravel()
    assert not set(rare.tolist()) & codes
    assert rare.max() < bins.total
    assert bins.used[rare].all()
    missing = Bins(none[:5], np.zeros((5, 1), np.int64))
    assert bins.missing[0] == missing.codes(none[:1], np.array([[0]], np.int64))[0, 0]


def test_the_reference_follows_slow_growth() -> None:
    batch, scores = payments(2, 40_000)
    growing = changed(batch, 0, "amount", np.linspace(1, 100, 40_000))  # each window a little above the last
    watch = ShiftDetector(SCHEMA, CONFIG)
    assert feed(watch, growing, scores) == []
    assert watch.psi()["amount"] > 1  # though each window is above nearly all of its reference


def test_a_column_that_jumps_every_few_windows_teaches_the_detector_to_expect_it() -> None:
    batch, scores = payments(3, 120_000)
    shifts = (np.arange(120_000) // 13_000 % 2).astype(np.float32)  # slower than the reference follows
    jumping = changed(
        changed(batch, 0, "seldom", shifts), 100_500, "amount", batch.numbers[100_500:, 0] * 100
    )
    alerts = feed(ShiftDetector(SCHEMA, CONFIG), jumping, scores)
    assert [alert.subject for alert in alerts[:2]] == ["seldom", "seldom"]
    assert [alert.subject for alert in alerts[2:]] == ["amount"]  # seven more jumps of the other are no news

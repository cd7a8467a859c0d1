"""The calibration detector: silent while scores are as right as usual, one alert when they are not, exact restarts."""

import numpy as np
import pytest

from learners.batch import Batch
from learners.calibration import CalibrationDetector
from learners.drift import Alert, DriftConfig
from learners.packing import pack, unpack

CONFIG = DriftConfig()
ROWS, CHANGE = 40_000, 26_000


def stream(seed: int, odds: float = 0.0, slope: float = 1.0, off: float = 0.0) -> tuple[Batch, np.ndarray]:
    """16 % ones; scores that are `off` from the start, and labels of other odds and slope from `CHANGE` on."""
    random = np.random.default_rng(seed)
    logit = random.normal(-1.9, 1, ROWS)
    true = logit.copy()
    true[CHANGE:] = -1.9 + slope * (logit[CHANGE:] + 1.9) + odds
    label = (random.random(ROWS) < 1 / (1 + np.exp(-true))).astype(np.float32)
    ms = np.arange(ROWS, dtype=np.int64) * 1_000
    nothing = np.zeros(ROWS, np.float32)
    ids = [f"e{i}" for i in range(ROWS)]
    batch = Batch(ids, ms, ms, nothing[:, None], np.zeros((ROWS, 0), np.int64), nothing, label)
    return batch, 1 / (1 + np.exp(-logit - off))


def feed(
    detector: CalibrationDetector, batch: Batch, scores: np.ndarray, begin: int = 0, step: int = 500
) -> list[Alert]:
    return [
        alert
        for start in range(begin, len(batch), step)
        for alert in detector.update(batch.slice(start, start + step), scores[start : start + step], "L1.3")
    ]


@pytest.mark.parametrize("off", [0.0, 1.0])  # a model that was never calibrated is no drift
def test_no_alarm_where_nothing_changes(off: float) -> None:
    for seed in range(5):
        assert feed(CalibrationDetector(CONFIG), *stream(seed, off=off)) == []


@pytest.mark.parametrize(("odds", "slope"), [(1.0, 1.0), (-1.0, 1.0), (0.0, 0.2)])
def test_scores_that_become_wrong_are_one_alert(odds: float, slope: float) -> None:
    for seed in range(3):
        (alert,) = feed(CalibrationDetector(CONFIG), *stream(seed, odds, slope))
        assert CHANGE < int(alert.alert_id.removeprefix("calibration-")) <= CHANGE + 3_000
        assert (alert.detector, alert.level, alert.subject) == ("calibration", "score", "calibration")
        assert alert.strength > alert.threshold
        assert 0.2 < alert.severity <= 1.0
        assert abs(int(alert.since_event_id[1:]) - CHANGE) <= 1_000
        assert alert.message.startswith("the scores are off: 0.1")


def test_what_was_served_before_the_alarm_and_is_labelled_later_is_left_out() -> None:
    batch, scores = stream(0, odds=1.0)
    detector = CalibrationDetector(CONFIG)
    (alert,) = feed(detector, batch, scores)
    before = detector.state()
    old = batch.slice(0, 5_000)
    assert detector.update(old, scores[:5_000], "L1.3") == []
    np.testing.assert_array_equal(detector.state()["counts"], before["counts"])
    assert alert.event_ms > old.event_ms[-1]


@pytest.mark.parametrize(("stop", "step"), [(0, 700), (26_700, 999), (30_000, 31)])
def test_neither_a_restart_nor_how_the_stream_is_cut_changes_anything(stop: int, step: int) -> None:
    batch, scores = stream(1, odds=1.0)
    straight, first, second = (CalibrationDetector(CONFIG) for _ in range(3))
    before = feed(first, batch.slice(0, stop), scores[:stop], step=step)
    second.load(unpack(pack(first.state())))
    assert before + feed(second, batch, scores, stop, step) == feed(straight, batch, scores) != []
    for name, array in straight.state().items():
        np.testing.assert_array_equal(array, second.state()[name], err_msg=name)

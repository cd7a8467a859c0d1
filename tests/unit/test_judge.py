"""What a score cost: bounded, in a unit that was known before, and right to bet on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from learners.batch import ModelConfig
from learners.judge import LARGEST_LOSS, Judge
from learners.metrics import log_loss, regression_metrics
from learners.target import BINARY, LARGEST_VALUE, Target
from learners.verdict import PairedTest

VALUES = Target("regression")
LARGEST = float(np.float32(LARGEST_VALUE))
anything = st.floats(width=32, allow_nan=True, allow_infinity=True)
labels = st.floats(-LARGEST, LARGEST, width=32)


def test_log_loss_is_as_it_is() -> None:
    judge, label, score = Judge(BINARY, ModelConfig()), np.array([0.0, 1.0]), np.array([0.2, 0.2])
    judge.note(label, score)
    assert judge.losses(label, score).tolist() == log_loss(label, score).tolist()


@given(arrays.arrays(np.float32, 9, elements=labels), arrays.arrays(np.float32, 9, elements=anything))
def test_losses_of_values_are_bounded_whatever_comes(label: np.ndarray, score: np.ndarray) -> None:
    for loss in ("mse", "mae"):
        judge = Judge(VALUES, ModelConfig(loss=loss))
        for part in np.split(np.arange(9), 3):
            found = judge.losses(label[part], score[part])
            assert np.isfinite(found).all()
            assert ((found >= 0.0) & (found <= LARGEST_LOSS)).all()
            judge.note(label[part], score[part])


@pytest.mark.parametrize(("loss", "ratio"), [("auto", 4.0), ("mse", 4.0), ("mae", 2.0), ("huber", 2.0)])
def test_a_usual_error_costs_1_and_the_unit_falls_out(loss: str, ratio: float) -> None:
    random = np.random.default_rng(0)
    error = random.normal(0, 1, 4_000)
    for unit in (1e-6, 1.0, 1e6):
        judge = Judge(VALUES, ModelConfig(loss=loss))
        judge.note(error * unit, np.zeros(4_000))
        assert judge.losses(error * unit, np.zeros(4_000)).mean() == pytest.approx(1.0)
        assert judge.losses(2 * error * unit, np.zeros(4_000)).mean() == pytest.approx(ratio, rel=0.01)


def test_the_scale_is_that_of_before_and_forgets() -> None:
    judge, zero = Judge(VALUES, ModelConfig(loss="mae")), np.zeros(1_000)
    assert judge.losses(zero + 7.0, zero).tolist() == [1.0] * 1_000  # nothing is known yet
    judge.note(zero + 1.0, zero)
    assert judge.losses(zero + 10.0, zero)[0] == 10.0
    for _ in range(40):
        judge.note(zero + 10.0, zero)
    assert judge.losses(zero + 10.0, zero)[0] == pytest.approx(1.0, rel=0.01)


def test_one_wild_event_does_not_blind_what_comes_after_it() -> None:
    judge, zero = Judge(VALUES, ModelConfig()), np.zeros(1_000)
    judge.note(zero + 1.0, zero)
    judge.note(np.array([1e12]), np.zeros(1))
    assert judge.losses(np.array([1.0]), np.zeros(1))[0] > 0.8


def test_perfect_scores_are_no_trap() -> None:
    judge, zero = Judge(VALUES, ModelConfig()), np.zeros(100)
    judge.note(zero, zero)
    assert judge.losses(zero, zero).tolist() == [0.0] * 100
    judge.note(zero + 2.0, zero)
    assert judge.losses(zero + 2.0, zero)[0] == pytest.approx(2.0)


def test_it_goes_on_exactly_where_it_was() -> None:
    random = np.random.default_rng(1)
    judge, again = Judge(VALUES, ModelConfig()), Judge(VALUES, ModelConfig())
    judge.note(random.normal(size=100), random.normal(size=100))
    again.load(judge.state())
    label, score = random.normal(size=(2, 50))
    assert again.losses(label, score).tobytes() == judge.losses(label, score).tobytes()


def promotions(advantage: float, runs: int) -> int:
    """How often a model is promoted whose errors are smaller by a share, while the noise of the stream swells."""
    won = 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        judge, test = Judge(VALUES, ModelConfig()), PairedTest(0.05, 0.0005, max_events=4_000)
        for step in range(40):
            size = 3.0 ** (step / 10)  # the errors grow a hundredfold in a run
            label = random.standard_t(3, 100) * size
            first, second = random.normal(0, 0.5, (2, 100)) * size
            losses = [judge.losses(label, s) for s in (first, (1.0 - advantage) * second)]
            test.update(*losses)
            judge.note(label, first)
            if test.verdict != "undecided":
                break
        won += test.verdict == "promote"
    return won


def test_models_that_are_alike_are_seldom_promoted_on_a_stream_that_swells() -> None:
    assert promotions(0.0, 60) <= 6  # 5 % at most; three of 60


def test_a_better_one_is_found() -> None:
    assert promotions(0.9, 10) >= 8


def test_metrics_of_values() -> None:
    label, score = np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 2.5, 2.0, np.nan])
    found = regression_metrics(label, score)
    assert (found["n"], found["positives"]) == (4, 0)
    assert found["mae"] == pytest.approx(0.5)
    assert found["rmse"] == pytest.approx(np.sqrt(1.25 / 3))
    assert found["r2"] == pytest.approx(1.0 - (1.25 / 3) / (2.0 / 3))
    assert np.isnan(regression_metrics(label[:0], score[:0])["mae"])
    assert np.isnan(regression_metrics(label[:1], score[:1])["r2"])


def test_a_histogram_tells_values_apart_by_sign_and_size() -> None:
    counts = [VALUES.histogram(np.array([value])).argmax() for value in (-1e12, -5.0, -0.01, 0.01, 5.0, 1e12)]
    assert counts == sorted(set(counts))
    assert VALUES.histogram(np.array([np.nan, np.inf, 1e30, -1e30, 0.0])).sum() == 3

"""A score that waited longer for a refresh than for its label is no news of the world; one with a late label is."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.arena import Arena
from learners.batch import Batch, ModelConfig, Schema
from learners.drift import Alert, DriftConfig
from learners.freshness import MOST, PARTS, Freshness
from learners.packing import pack, unpack

SCHEMA = Schema(("x",), (), "t")


def rows(
    event_s: list[int], delay_s: int, refresh: int | list[int], lineage: int = 1, classes: int = 0
) -> Batch:
    """Events at these seconds, labels `delay_s` later, served by a version of a lineage."""
    n, moments = len(event_s), np.array(event_s, np.int64) * 1_000
    ids, zeros = [f"e{second}" for second in event_s], np.zeros(n, np.float32)
    served = np.full((n, classes) if classes else n, 0.5, np.float32)
    known = moments + delay_s * 1_000
    batch = Batch(ids, moments, known, zeros[:, None], np.zeros((n, 0), np.int64), served, zeros)
    return replace(batch, lineage=np.full(n, lineage, np.int32), refresh=np.full(n, refresh, np.int32))


def counts(batch: Batch) -> list[bool]:
    return [bool(np.isfinite(score).all()) for score in batch.served]


def told(version: str = "L1.3", delay_s: int = 60) -> Freshness:
    """All labels known until second 1,000 are learned, and then a version is made."""
    made = Freshness()
    made.fresh(rows([1_000 - delay_s], delay_s, 0), version.partition(".")[0] + ".0")
    made.fresh(rows([1_000 - delay_s], delay_s, 0), version)
    return made


def test_a_score_counts_until_its_version_lags_for_longer_than_its_label_took() -> None:
    assert (
        counts(told().fresh(rows([900, 1_000, 1_060, 1_061, 5_000], 60, 3), "L1.3"))
        == [True] * 3 + [False] * 2
    )


def test_where_labels_take_a_week_what_was_served_counts() -> None:
    week = 7 * 86_400
    batch = rows([1_000, 1_000 + week, 1_001 + week], week, 3)
    assert counts(told(delay_s=week).fresh(batch, "L1.3")) == [True, True, False]


def test_of_what_is_not_known_nothing_is_said() -> None:
    late = 9_000
    for batch in (
        rows([late], 60, 0),
        rows([late], 60, 2),
        rows([late], 60, 3, lineage=2),
        rows([late], 60, 3, 0),
    ):
        made = told()
        assert counts(made.fresh(batch, "L1.3")) == [True]
        assert made.fresh(batch, "L1.4") is batch
    assert counts(Freshness().fresh(rows([late], 60, 1), "L1.1")) == [True]  # nothing was learned yet


def test_another_lineage_begins_anew_and_its_first_version_knows_what_was_learned() -> None:
    made = told()
    assert counts(made.fresh(rows([1_000, 1_100], 60, 1, lineage=2), "L2.1")) == [True, False]
    assert counts(made.fresh(rows([1_100], 60, 3), "L2.1")) == [True]  # of L1 nothing is remembered


def test_of_several_classes_all_probabilities_go_and_what_came_in_stays_as_it_is() -> None:
    batch = rows([1_000, 9_000], 60, 3, classes=3)
    assert counts(told().fresh(batch, "L1.3")) == [True, False]
    assert counts(batch) == [True, True]


def test_one_wrong_clock_decides_nothing() -> None:
    made = told()
    wrong = rows([1_000] * 5, 60, 3)
    wrong.known_ms[2] = 10**15
    made.fresh(wrong, "L1.3")
    assert counts(made.fresh(rows([1_200], 60, 4), "L1.4")) == [False]


def test_memory_is_bounded_and_holds_the_newest() -> None:
    made = Freshness()
    for number in range(2 * MOST):
        made.fresh(rows([number], 0, 0), f"L1.{number}")
    assert len(made.state()["made"]) == MOST
    end = 2 * MOST
    batch = rows([end + 5_000] * 3, 0, [end - MOST, end - MOST + 1, end - 1])
    assert counts(made.fresh(batch, f"L1.{end - 1}"))[1:] == [False, False]


@given(
    st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(0, 300),
)
@settings(max_examples=60, deadline=None)
def test_it_is_what_all_versions_would_say_but_for_a_part_of_the_delay(
    steps: list[tuple[int, bool, int]], delay_s: int
) -> None:
    made, again = Freshness(), Freshness()
    known_s, second, refresh, all_made = None, 0, 0, dict[int, int]()
    for apart, publish, back in steps:
        second += apart
        refresh += publish
        if known_s is not None:
            all_made.setdefault(refresh, known_s)
        batch = rows([second], delay_s, max(0, refresh - back))
        again.load(unpack(pack(made.state())))
        (one,), (other,) = (counts(each.fresh(batch, f"L1.{refresh}")) for each in (made, again))
        assert one == other
        version = int(batch.refresh[0])
        if version and version in all_made:
            lag = second - all_made[version]
            assert one or lag + delay_s / PARTS > delay_s
            assert lag <= delay_s or not one or version == min(v for v in all_made if v)
        known_s = max(known_s if known_s is not None else second + delay_s, second + delay_s)


@pytest.mark.parametrize(("delay_s", "alerts"), [(0, 0), (20_000, 1)])
def test_a_bad_version_that_serves_for_too_long_is_no_drift_and_one_that_could_not_know_better_is(
    delay_s: int, alerts: int
) -> None:
    """From second 6,000 on the second version is wrong, and the champion when the label comes is not."""
    random, n = np.random.default_rng(4), 12_000
    x = random.normal(size=n).astype(np.float32)
    label = (random.random(n) < 1 / (1 + np.exp(-2 * x))).astype(np.float32)
    batch = replace(rows(list(range(n)), delay_s, 2), numbers=x[:, None], label=label)
    batch.served[:] = np.where(np.arange(n) < 6_000, 1 / (1 + np.exp(-2 * x)), 1 / (1 + np.exp(x)))
    config = ModelConfig(family="logistic", rows=64, batch_size=64, learning_rate=0.01)
    ring = Arena(SCHEMA, config, config, DriftConfig(), 1, device="cpu")
    found = []
    for start in range(0, n, 64):
        if start in (640, 1_280):
            ring.champion.full()
        found += ring.observe(batch.slice(start, start + 64), created_ms=start)
    of_loss = [event for event in found if isinstance(event, Alert) and event.level == "loss"]
    assert len(of_loss) == alerts

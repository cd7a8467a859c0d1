"""Who has a swap: reports in, stragglers out, by the clock that goes in."""

import msgspec
import numpy as np

from learners.admission import BadUpdate
from streams.fleet import FORGET_MS, LIMIT_MS, Fleet, Refusal, Report, ReportWriter


def report(worker: str, version: str, at_ms: int) -> Report:
    return Report("clicks", worker, version, at_ms)


def fleet(*reports: Report) -> Fleet:
    made = Fleet()
    for each in reports:
        made.hear(each)
    return made


def test_a_swap_that_reaches_everyone_names_nobody():
    watched = fleet(report("a", "L1.7", 900), report("b", "L1.6", 950))
    watched.swapped("L2.1", 1_000)
    watched.hear(report("a", "L2.1", 1_100))
    assert watched.late(1_150) == []
    watched.hear(report("b", "L2.4", 1_300))  # a refresh later
    assert watched.late(1_350) == []
    assert watched.complete_ms == 300
    assert watched.late(1_000 + LIMIT_MS) == []


def test_a_worker_without_the_swap_is_named_once_for_each_swap():
    watched = fleet(report("a", "L1.7", 900), report("b", "L1.6", 950))
    watched.swapped("L2.1", 1_000)
    watched.hear(report("a", "L2.1", 2_900))
    watched.hear(report("b", "L1.9", 2_900))
    assert watched.late(1_000 + LIMIT_MS - 1) == []
    [late] = watched.late(1_000 + LIMIT_MS)
    assert (late.worker, late.wanted, late.has, late.late_ms) == ("b", "L2.1", "L1.9", LIMIT_MS)
    assert watched.late(1_000 + LIMIT_MS + 50) == []
    watched.swapped("L3.1", 4_000)
    watched.hear(report("a", "L2.2", 5_900))
    watched.hear(report("b", "L2.2", 5_900))
    assert [late.worker for late in watched.late(4_000 + LIMIT_MS)] == ["a", "b"]


def test_an_older_refresh_of_the_wanted_lineage_is_not_the_swap():
    watched = fleet(report("a", "L1.57", 900))
    watched.swapped("L1.60", 1_000)  # back to a lineage that it had before
    watched.hear(report("a", "L1.57", 2_900))
    assert [late.has for late in watched.late(1_000 + LIMIT_MS)] == ["L1.57"]


def test_a_worker_that_is_gone_is_not_waited_for():
    watched = fleet(report("a", "L1.7", 1_000))
    watched.swapped("L2.1", 1_000 + FORGET_MS)
    assert watched.late(1_001 + FORGET_MS + LIMIT_MS) == []


def test_a_report_says_what_was_scored_by_the_lineage_that_serves():
    writer = ReportWriter("clicks", "w", 2.0)
    writer.scored("L1.3", np.full(10, 0.2, np.float32), 1.0)
    writer.scored("L2.1", np.array([0.2, np.nan], np.float32), 0.5)
    writer.scored("L2.2", np.full(128, 0.9, np.float32), 4.5)
    writer.refused("L3.1", BadUpdate("golden", "other scores"))
    read = msgspec.json.decode(writer.take("L2.2", 77), type=Report)
    assert (read.worker, read.version, read.created_at) == ("w", "L2.2", 77)
    assert read.refused == (Refusal("L3.1", "golden", "other scores"),)
    assert (read.scored.rows, read.scored.broken, read.scored.batches, read.scored.slow) == (130, 1, 2, 1)
    assert sum(read.scored.histogram) == 129
    again = msgspec.json.decode(writer.take("L2.2", 78), type=Report)
    assert (again.refused, again.scored.rows) == ((), 0)


def test_scores_of_the_lineage_before_are_not_reported_as_those_of_the_next():
    writer = ReportWriter("clicks", "w", 2.0)
    writer.scored("L1.3", np.full(10, 0.2, np.float32), 1.0)
    assert msgspec.json.decode(writer.take("L2.1", 1), type=Report).scored.rows == 0


def beside(worker: str, version: str, at_ms: int) -> Report:
    return Report("clicks", worker, version, at_ms, canary=True)


def test_a_worker_that_does_not_take_up_a_canary_is_named_once():
    watched = fleet(report("a", "L1.7", 900), report("b", "L1.7", 950))
    watched.canary_began("L2.1", 1_000)
    for each in (report("a", "L1.8", 2_900), beside("a", "L2.2", 2_900), report("b", "L1.8", 2_900)):
        watched.hear(each)
    assert watched.late(1_000 + LIMIT_MS - 1) == []
    [late] = watched.late(1_000 + LIMIT_MS)
    assert (late.worker, late.wanted, late.has, late.after) == ("b", "L2.1", "", "L2.1 became a canary")
    assert watched.late(1_000 + LIMIT_MS + 50) == []
    watched.canary_ended("L1.9", 3_100)
    watched.hear(beside("a", "L2.2", 5_000))
    watched.hear(report("a", "L1.8", 5_000))
    watched.hear(report("b", "L1.9", 5_000))
    [late] = watched.late(3_100 + LIMIT_MS)  # and nobody waits for the canary any more
    assert (late.worker, late.wanted, late.has, late.after) == (
        "a",
        "L1.9",
        "L1.8",
        "L1.9 had ended the canary",
    )


def test_one_that_served_an_earlier_canary_does_not_have_the_next():
    watched = fleet(report("a", "L1.7", 900), beside("a", "L2.5", 900))
    watched.canary_began("L3.1", 1_000)
    watched.hear(report("a", "L1.7", 2_900))
    assert [late.has for late in watched.late(1_000 + LIMIT_MS)] == [""]

"""Steps are a function of the log: not of how its records arrive, nor of where a learner began again."""

from itertools import pairwise

import numpy as np
import pytest

from learners.batch import Batch
from learners.cuts import Cutter, RowsGone, Step
from learners.entries import Position
from tests.learner_rows import rows

SIZE = 8
Log = dict[int, list[tuple[int, int, Batch | None]]]
"""Partition → (offset, time, rows) of its records."""


def make_log(seed: int, records: int = 60) -> Log:
    """Two partitions with gaps in their offsets, equal and falling times, and records without rows."""
    random = np.random.default_rng(seed)
    log: Log = {0: [], 1: []}
    offsets, start = {0: 0, 1: 3}, 0
    pool = rows(2_000, seed)
    for time in range(records):
        partition = int(random.integers(2))
        count = int(random.choice([0, 1, 3, 7, 8, 20]))
        batch = None if random.random() < 0.1 else pool.slice(start, start + count)
        start += count
        log[partition].append((offsets[partition], time // 2 * 2 - 5 * (time == 30), batch))
        offsets[partition] += int(random.choice([1, 1, 1, 2]))
    return log


def cut(log: Log, seed: int, positions: dict[int, Position], most: int = 5) -> tuple[list[Step], Cutter]:
    """All steps, with records that arrive at random, as a poll might bring them."""
    random = np.random.default_rng(seed)
    cutter = Cutter(SIZE, positions)
    left = {p: [record for record in log[p] if record[0] >= positions[p][0]] for p in log}
    made: list[Step] = []
    while any(left.values()) or any(cutter.waiting(p) for p in log):
        for partition in log:
            for _ in range(int(random.integers(0, 6))):
                if left[partition]:
                    cutter.add(partition, *left[partition].pop(0))
        behind = {p for p in log if left[p]}
        made += cutter.steps(behind, most, flush=True)
    return [*made, *cutter.steps((), most, flush=True)], cutter


START: dict[int, Position] = {0: (0, 0), 1: (0, 0)}


def contents(steps: list[Step]) -> list[tuple[list[str], object]]:
    return [(step.batch.event_ids, step.runs) for step in steps]


def ids(log: Log) -> list[str]:
    return sorted(i for records in log.values() for _, _, batch in records if batch for i in batch.event_ids)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_steps_however_records_arrive(seed: int) -> None:
    log = make_log(seed)
    once, cutter = cut(log, 0, START)
    assert all(len(step.batch) == SIZE for step in once[:-1])
    assert sorted(i for step in once for i in step.batch.event_ids) == ids(log)
    assert cutter.positions == {p: (log[p][-1][0] + 1, 0) for p in log}
    for arrival in range(1, 5):
        assert contents(cut(log, arrival, START, most=arrival)[0]) == contents(once)


def test_records_are_merged_by_their_time() -> None:
    log = make_log(3)
    cutter = Cutter(1, START)
    for partition, records in log.items():
        for offset, time, batch in records:
            cutter.add(partition, offset, time, batch)
    order = [step.batch.event_ids[0] for step in cutter.steps((), 10_000, flush=True)]
    time_of = {
        i: time for records in log.values() for _, time, batch in records if batch for i in batch.event_ids
    }
    times = [time_of[i] for i in order]
    assert sum(after < before for before, after in pairwise(times)) <= 1  # the one that falls


@pytest.mark.parametrize("seed", range(3))
def test_a_learner_that_begins_again_anywhere_takes_the_same_steps(seed: int) -> None:
    log = make_log(seed)
    whole, _ = cut(log, 0, START)
    positions = dict(START)
    for number, step in enumerate(whole, 1):
        for run in step.runs:
            positions[run.partition] = run.end
        again, _ = cut(log, number, positions)
        assert contents(again) == contents(whole[number:])


def test_steps_of_the_ledger_are_taken_again_as_soon_as_their_rows_are_there() -> None:
    log = make_log(5)
    cutter = Cutter(SIZE, START)
    made: list[Step] = []
    for batch_of in range(6):  # a live end: what is there is cut, whatever the size
        for partition, records in log.items():
            for record in records[batch_of * 5 : batch_of * 5 + 5]:
                cutter.add(partition, *record)
        made += cutter.steps((), 100, flush=True)
    assert any(len(step.batch) < SIZE for step in made)
    again = Cutter(SIZE, START)
    left = {p: list(records) for p, records in log.items()}
    for step in made:
        while (found := again.again(step.runs, len(step.batch))) is None:
            for partition in left:
                if left[partition]:
                    again.add(partition, *left[partition].pop(0))
        assert found.event_ids == step.batch.event_ids
        assert np.array_equal(found.numbers, step.batch.numbers, equal_nan=True)
    for partition in left:
        for record in left[partition]:
            again.add(partition, *record)
        for record in log[partition][30:]:
            cutter.add(partition, *record)
    assert contents(again.steps((), 100, flush=True)) == contents(cutter.steps((), 100, flush=True))


def test_rows_that_wait_for_more_are_not_behind_the_position() -> None:
    cutter = Cutter(SIZE, {0: (0, 0)})
    cutter.add(0, 0, 0, rows(11))
    [step] = cutter.steps((), 9, flush=False)
    assert (step.runs[0].end, cutter.positions) == ((0, 8), {0: (0, 8)})
    assert cutter.steps({0}, 9, flush=True) == []
    cutter.add(0, 4, 0, rows(2))
    [rest] = cutter.steps((), 9, flush=True)
    assert (len(rest.batch), cutter.positions) == (5, {0: (5, 0)})


def test_records_without_rows_are_passed() -> None:
    cutter = Cutter(SIZE, {0: (0, 0)})
    cutter.add(0, 7, 0, None)
    assert cutter.steps((), 9, flush=True) == []
    assert cutter.positions == {0: (8, 0)}


def test_rows_that_are_gone_are_told() -> None:
    cutter = Cutter(SIZE, {0: (0, 0)})
    for offset in range(4):
        cutter.add(0, offset, offset, rows(SIZE, offset))
    steps = cutter.steps((), 9, flush=True)
    later = Cutter(SIZE, {0: (0, 0)})
    for offset in range(2, 4):  # what Kafka gives when it has deleted the first two
        later.add(0, offset, offset, rows(SIZE, offset))
    with pytest.raises(RowsGone, match="of 8 rows of a step 0 are left"):
        later.again(steps[0].runs, SIZE)
    shorter = Cutter(SIZE, {0: (0, 0)})
    shorter.add(0, 0, 0, rows(SIZE - 1))
    with pytest.raises(RowsGone, match="of 8 rows of a step 7 are left"):
        shorter.again(steps[0].runs, SIZE)
    assert shorter.positions == {0: (0, 0)}

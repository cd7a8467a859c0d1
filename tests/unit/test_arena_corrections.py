"""A late label in the arena: learned as a row, measured as the row it corrects, never tested twice."""

from dataclasses import replace
from typing import Any

import numpy as np

from learners.arena import Arena, MetricRow
from learners.batch import Batch
from learners.prequential import metrics
from tests.unit.test_arena import arena, stream

COUNT, HALF = 1_024, 512


def observed(*batches: Batch, **settings: Any) -> tuple[Arena, list[MetricRow]]:
    ring = arena(freeze_at_ms=None, metrics_every=HALF, **settings)
    events = [event for batch in batches for event in ring.observe(batch, created_ms=1)]
    return ring, [event for event in events if isinstance(event, MetricRow)]


def taken_for_negatives() -> tuple[Batch, Batch]:
    """The first rows as if no label had come for a third of the positives, and these again with their labels."""
    rows = stream(3).slice(0, COUNT)
    late = (rows.label == 1.0) & (np.arange(COUNT) % 3 == 0) & (np.arange(COUNT) < HALF)
    rows = replace(rows, served=np.full(COUNT, 0.4, np.float32))
    again = replace(rows.take(late), corrects=np.ones(int(late.sum()), np.bool_))
    return replace(rows, label=np.where(late, 0.0, rows.label).astype(np.float32)), again


def test_metrics_have_every_event_once_with_the_label_that_is_known_now() -> None:
    rows, late = taken_for_negatives()
    mixed = Batch.concat([rows.slice(0, HALF + 100), late, rows.slice(HALF + 100, COUNT)])
    ring, found = observed(mixed)
    served = [row for row in found if row.arm == "served"]
    assert [row.n for row in served] == [512, 1_000]  # the window holds 1,000
    truth = stream(3).label[COUNT - 1_000 : COUNT]
    assert served[-1].positives == int(truth.sum())
    assert served[-1].log_loss == metrics(truth, np.full(1_000, 0.4, np.float32))["log_loss"]
    assert ring.examples == COUNT  # those that were seen first, not the lessons
    assert ring.champion.examples == COUNT + len(late)


def test_corrections_alone_are_learned_and_nothing_else() -> None:
    rows, late = taken_for_negatives()
    ring, _ = observed(rows)
    before = ring.champion.score(late.numbers, late.categories)
    assert ring.observe(late, created_ms=1) == []
    assert ring.examples == COUNT
    assert ring.champion.score(late.numbers, late.categories).mean() > before.mean()


def test_segments_have_rows_of_their_own_for_the_same_values_in_all_arms() -> None:
    rows, _ = taken_for_negatives()
    _, found = observed(rows, segments=("a",))
    whole = [row for row in found if not row.segment]
    parts = [row for row in found if row.segment]
    assert {row.segment for row in parts} == {"a"}
    by_arm = {arm: {r.segment_value for r in parts if r.arm == arm} for arm in {r.arm for r in whole}}
    assert len({frozenset(values) for values in by_arm.values()}) == 1
    last = max(row.event_ms for row in parts)
    value = next(iter(by_arm["served"]))
    row = next(r for r in parts if (r.arm, r.segment_value, r.event_ms) == ("served", value, last))
    own = (rows.categories[:, 0] == value)[COUNT - 1_000 :]
    assert (row.n, row.positives) == (int(own.sum()), int(rows.label[COUNT - 1_000 :][own].sum()))

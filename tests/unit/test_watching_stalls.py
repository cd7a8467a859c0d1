"""Features of a stream whose labels stop coming for a while are no drift; a number in other units still is."""

from dataclasses import replace
from itertools import takewhile

import numpy as np
import pytest

from learners.batch import Batch
from learners.drift import Alert
from learners.shift import ShiftDetector
from streams.backtest_stream import Path, cut
from streams.simulate import parse_change, simulate
from streams.task import CALENDAR, Task, load_task
from tests.stream_records import HIDDEN, MINUTE

CLICKS = load_task("clicks")
RATES_TOO = replace(CLICKS, drift=replace(CLICKS.drift, ignore=CALENDAR))
EVENTS, END = 30_000, 0.7  # of a day; at night hardly anything is shown, which no window of before has seen


def watched(task: Task, drift: str = "", stall: tuple[float, float] = (0.0, 0.0)) -> list[Alert]:
    """Alerts on what is served, while no label reaches anybody between two fractions of the day, and then all do."""
    stream = simulate("clicks", seed=2, events=EVENTS, changes=[parse_change(drift)] if drift else [])
    moments = {at: stream.start_ms + round(at * stream.stream.schedule_ms) for at in (*stall, END)}
    scores = np.random.default_rng(2).beta(1, 9, EVENTS).astype(np.float32)
    path, detector, alerts = Path(task, HIDDEN), ShiftDetector(task.schema, task.drift), list[Alert]()
    waiting = []
    items = takewhile(lambda item: item.time_ms < moments[END], stream.items())
    for micro in cut(items, 256, 5 * MINUTE):
        rows = path.features(micro.events)
        if len(rows):
            served = scores[rows.offset]
            batch = Batch(
                rows.ids, rows.event_ms, rows.event_ms, rows.numbers, rows.categories, served, served
            )
            alerts += detector.update(batch, served, "L1.1")
        waiting.append((rows, micro.labels))
        if not moments[stall[0]] <= micro.time_ms < moments[stall[1]]:
            for late, labels in waiting:
                path.labelled(late, labels)
            waiting.clear()
    return alerts


@pytest.mark.parametrize("until", [0.56, 0.65])
def test_labels_that_stop_coming_for_a_while_move_no_input(until: float) -> None:
    assert watched(CLICKS, stall=(0.5, until)) == []
    told = watched(RATES_TOO, stall=(0.5, until))
    assert told
    assert all("label_rate" in alert.subject for alert in told)


def test_another_unit_is_one_alert_though_labels_stop_coming_meanwhile() -> None:
    (alert,) = watched(CLICKS, "unit@0.55", (0.5, 0.65))
    assert (alert.level, alert.subject, alert.features[0].name) == ("input", "position", "position")

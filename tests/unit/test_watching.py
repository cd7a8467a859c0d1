"""What is served is watched before its labels: an alarm at once, told once, across restarts and partitions."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.kafka import Record
from infra.metrics import Metrics
from infra.settings import Settings
from learners.drift import Alert
from learners.entries import Warned
from streams.kept import Kept
from streams.labelled import ListLog
from streams.learn import Learner
from streams.outlet import ListOutlet
from streams.rebuild import ledger_of
from streams.task import Task
from streams.watching import ServedWatch
from streams.wire import EXAMPLES, KIND, LABELS, decode_examples, encode_examples
from tests.learner_log import PARTITIONS, EndingLog, Logged, labelled, records, small_task

ROWS, CHANGE = 12_000, 8_000


def examples(task: Task, version: str = "L1.4") -> dict[int, list[Record]]:
    """Served rows in records of some length in two partitions; one number is a hundredfold from `CHANGE` on."""
    rows = labelled(task, ROWS).rows
    rows.numbers[CHANGE:, 0] = rows.numbers[CHANGE:, 0] * 100
    served = np.random.default_rng(1).beta(2, 8, ROWS).astype(np.float32)
    log: dict[int, list[Record]] = {p: [] for p in range(PARTITIONS)}
    rng, start = np.random.default_rng(2), 0
    while start < ROWS:
        stop, p = min(start + int(rng.integers(1, 90)), ROWS), int(rng.integers(PARTITIONS))
        cut = np.arange(start, stop)
        value = encode_examples(rows.take(cut), served[cut], version)
        log[p].append(Logged("examples", p, len(log[p]) * 2, start, value, None, [(KIND, EXAMPLES)]))
        log[p].append(Logged("examples", p, len(log[p]) * 2, start, b"", None, [(KIND, LABELS)]))
        start = stop
    return log


def watch(task: Task, log: Mapping[int, list[Record]], at_once: int = 64) -> ServedWatch:
    """With models of which it is not known what they had learned."""
    return ServedWatch(task, ListLog(log, at_once), Metrics(), lambda version: 0)


def alarms(watching: ServedWatch, turns: int = 400) -> list[Alert]:
    return [alert for _ in range(turns) if (alert := watching.turn()) is not None]


def place(alert: Alert) -> int:
    return int(alert.since_event_id.removeprefix("e-"))


def test_an_input_that_moves_is_noticed_without_a_label_and_dated() -> None:
    task = small_task()
    watching = watch(task, examples(task))
    watching.start()
    (alert,) = alarms(watching)
    assert (alert.level, alert.subject, alert.version) == ("input", task.numbers[0], "L1.4")
    assert "about 100 times larger" in alert.message
    assert abs(place(alert) - CHANGE) <= 20
    assert alert.event_ms < (CHANGE + 600) * 1_000
    assert watching.psi()
    assert watching.event_ms == (ROWS - 1) * 1_000


def test_a_turn_looks_at_as_many_rows_as_a_round_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.watching.MOST_ROWS", 5_000)
    task = small_task()
    watching = watch(task, examples(task), at_once=3)
    watching.start()
    assert watching.turn() is None
    assert 5_000 <= watching.event_ms / 1_000 + 1 < 5_090


@pytest.mark.parametrize("at_once", [1, 7])
def test_how_the_records_come_changes_nothing(at_once: int) -> None:
    task = small_task()
    one, other = watch(task, examples(task)), watch(task, examples(task), at_once)
    one.start()
    other.start()
    assert alarms(one) == alarms(other, 3_000) != []
    assert one.state() == other.state()


def test_a_restart_goes_on_and_other_settings_keep_the_place_only() -> None:
    task = small_task()
    log = examples(task)
    first, second, straight = (watch(task, log, 3) for _ in range(3))
    first.start()
    straight.start()
    before = alarms(first, 60)
    second.load(*first.state())
    second.start()
    assert second.positions == first.positions
    assert before + alarms(second, 3_000) == alarms(straight, 3_000) != []
    other = watch(replace(task, drift=replace(task.drift, window=800)), log, 3)
    other.load(*first.state())
    other.start()
    assert other.positions == first.positions
    assert other.seen == 0


def with_other_scores_of(version: str, task: Task) -> list[Record]:
    """Served rows whose scores are others from `CHANGE` on, of that version; L1.4 is the one before."""
    rows, log = labelled(task, ROWS).rows, list[Record]()
    for start in range(0, ROWS, 50):
        cut, after = np.arange(start, start + 50), start >= CHANGE
        served = np.random.default_rng(start).beta(8 if after else 2, 8, 50).astype(np.float32)
        value = encode_examples(rows.take(cut), served, version if after else "L1.4")
        log.append(Logged("examples", 0, start, start, value, None, [(KIND, EXAMPLES)]))
    return log


def test_a_swap_of_the_model_that_serves_is_no_shift_of_the_scores() -> None:
    task = small_task()
    watching = watch(task, {0: with_other_scores_of("L2.0", task)})
    watching.start()
    assert alarms(watching) == []


@pytest.mark.parametrize(("learned", "shifts"), [(7_000, True), (CHANGE, False)])
def test_a_young_model_that_learned_much_at_once_is_no_shift_of_the_scores(
    learned: int, shifts: bool
) -> None:
    task = small_task()
    log = ListLog({0: with_other_scores_of("L1.5", task)}, 64)
    watching = ServedWatch(task, log, Metrics(), {"L1.4": 3_500, "L1.5": learned}.__getitem__)
    watching.start()
    assert [alert.level for alert in alarms(watching)] == ["score"] * shifts


def test_beside_a_canary_what_the_champion_serves_is_watched_all_the_same() -> None:
    task, log = small_task(), dict[int, list[Record]]()
    for partition, served_log in examples(task).items():
        log[partition] = []
        for record in served_log[::2]:  # the others are labels
            rows, served, _ = decode_examples(record.value)
            canary = np.arange(len(rows)) % 4 == 3
            versions = ["L2.5" if own else "L1.3" for own in canary.tolist()]
            rows = replace(rows, arm=np.where(canary, 2, -2).astype(np.int32))
            value = encode_examples(rows, np.where(canary, np.float32(0.99), served), versions)
            log[partition].append(
                Logged(
                    "examples", partition, record.offset, record.timestamp, value, None, [(KIND, EXAMPLES)]
                )
            )
    watching = watch(task, log)
    watching.start()
    (alert,) = alarms(watching)
    assert (alert.level, alert.subject, alert.version) == ("input", task.numbers[0], "L1.3")


def learn(task: Task, data: Path, outlet: ListOutlet, label_rows: int) -> dict[str, float]:
    """Learn from so many labels, and look at all that is served; what the learner counted."""
    settings = Settings(kafka="none:1", data=data, partitions=PARTITIONS)
    late = records(task, labelled(task, ROWS, turn=1.0).take(np.arange(label_rows)))
    ended = set[str]()

    def end(name: str) -> None:
        ended.add(name)
        if ended == {"labels", "served"}:
            made.stop()

    source = EndingLog(late, 64, lambda: end("labels"))
    served = EndingLog(examples(task), 256, lambda: end("served"))
    made = Learner(task, settings, source, outlet, None, served, checkpoint_every_ms=10**9)
    made.run()
    return made.training.metrics.snapshot()


def said(outlet: ListOutlet, topic: str) -> list[dict[str, Any]]:
    return [json.loads(value) for name, value in outlet.sent if name.endswith(topic)]


def test_the_learner_warns_before_the_labels_and_starts_challengers_when_they_come(tmp_path: Path) -> None:
    task, outlet = small_task(), ListOutlet()
    counted = learn(task, tmp_path, outlet, 2_000)
    (warning,) = [row for row in said(outlet, "drift-alerts") if row["level"] == "input"]
    assert warning["message"].startswith(f"{task.numbers[0]} is about 100 times larger")
    assert counted["alerts_total{input}"] == 1
    assert (tmp_path / "blobs" / warning["evidence"]).exists()
    assert said(outlet, "feature-drift")[-1]["psi"]
    assert not [row for row in said(outlet, "audit") if row["action"] == "start"]
    kept = Kept.of(Settings(kafka="none:1", data=tmp_path, partitions=PARTITIONS), task.name)
    (entry,) = [line.entry for line in ledger_of(kept)[0] if isinstance(line.entry, Warned)]
    assert entry.alert.alert_id == warning["alert_id"]

    again = ListOutlet()  # the labels come: no second warning, but challengers
    again.updates = outlet.updates
    counted = learn(task, tmp_path, again, ROWS)
    assert said(again, "drift-alerts") == []
    decisions = said(again, "audit")
    starts = [row for row in decisions if row["action"] == "start"]
    told = Counter(f"decisions_total{{{row['action']}}}" for row in decisions)
    assert {name: value for name, value in counted.items() if name.startswith("decisions_total")} == told
    lags = {name: value for name, value in counted.items() if name.startswith("lag_records")}
    assert lags == {f"lag_records{{{task.name}.{topic}}}": 0 for topic in ("examples", "labelled")}
    assert {row["evidence"]["alert_id"] for row in starts} == {warning["alert_id"]}
    read = {p: log[-1].offset + 1 for p, log in examples(task).items()}
    assert again.places[f"{task.name}.examples"] == read
    assert min(row["event_time"] for row in starts) >= warning["since_time"]


def test_a_warning_of_the_ledger_is_told_again_with_its_evidence_and_not_noticed_twice(
    tmp_path: Path,
) -> None:
    task, outlet, again = small_task(), ListOutlet(), ListOutlet()
    learn(task, tmp_path, outlet, 2_000)
    for checkpoint in sorted(
        (tmp_path / "blobs" / "learner").rglob("*")
    ):  # as if it had died before the first
        if checkpoint.is_file():
            checkpoint.unlink()
    again.updates = outlet.updates
    learn(task, tmp_path, again, 2_000)
    (first,), (second,) = said(outlet, "drift-alerts"), said(again, "drift-alerts")
    assert second | {"created_at": 0} == first | {"created_at": 0}

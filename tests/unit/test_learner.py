"""A learner that dies at any instant ends as one that was never disturbed; what it does when things are gone."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.blobs import Blobs
from infra.kafka import Record
from learners import checkpoint
from learners.entries import Line, Settings, Steps, Version, Void
from learners.ledger import Ledger, read_lines
from learners.slot import Slot
from streams.kept import ANCHOR_EVERY_MS, Kept, anchors
from streams.learn import Learner
from streams.outlet import ListOutlet, Meta
from tests import learner_log as logs

TASK = logs.small_task()
ROWS = 4_000


@cache
def log() -> dict[int, list[Record]]:
    return logs.records(TASK, logs.labelled(TASK, ROWS))


def kept(learner: Learner) -> Kept:
    return learner._kept


def lines(learner: Learner) -> list[Line]:
    return list(read_lines(kept(learner).ledger_path, kept(learner).store, kept(learner).ledger))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The learner's hash after each number of steps."""
    learner = logs.learner(TASK, tmp_path_factory.mktemp("undisturbed"), log(), ListOutlet(), at_once=3)
    learn, digests = learner.training.learn, [logs.digest(learner.training.arena)]

    def learn_and_look(*arguments: Any) -> None:
        learn(*arguments)
        digests.append(logs.digest(learner.training.arena))

    setattr(learner.training, "learn", learn_and_look)  # noqa: B010
    learner.run()
    assert learner.training.arena.examples == ROWS
    assert learner.training.arena.champion.lineage != "L1"  # a challenger has won: the test has that too
    return digests


class Dies(Exception):
    """Stands for kill -9: whatever was to come does not."""


class Fate:
    """Counts what a learner does that others can see, and ends it before or after one of these."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        for kind, name in ((Ledger, "_write"), (Blobs, "put"), (Blobs, "delete"), (ListOutlet, "publish")):
            monkeypatch.setattr(kind, name, self._counted(getattr(kind, name)))

    def _counted(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any) -> Any:
            self._tick()
            done = act(*arguments)
            self._tick()
            return done

        return acting

    def _tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Dies


def lives(fate: Fate, data: Path, outlet: ListOutlet, spans: Iterator[int], **how: Any) -> Iterator[Learner]:
    """Learners one after another, each of which ends after so many visible acts; the last one when all is learned."""
    while (span := next(spans, None)) is not None:
        fate.left = span
        try:
            learner = logs.learner(TASK, data, log(), outlet, **how)
        except Dies:
            continue
        try:
            learner.run()
        except Dies:
            learner._ledger.close()
        else:
            spans = iter(())
        fate.left = 10**9
        yield learner


def check_history(entries: list[Line]) -> None:
    """Every row was learned exactly once: the runs of each partition follow each other without gap and overlap."""
    steps = [line.entry for line in entries if isinstance(line.entry, Steps)]
    assert [step.step for step in steps[1:]] == [step.step + len(step.rows) for step in steps[:-1]]
    assert sum(sum(step.rows) for step in steps) == ROWS
    positions = {p: (found[0].offset, 0) for p, found in log().items()}
    for step in steps:
        for run in (run for runs in step.runs for run in runs):
            assert run.start == positions[run.partition]
            positions[run.partition] = run.end
    assert positions == {p: (found[-1].offset + 1, 0) for p, found in log().items()}


def check_updates(outlet: ListOutlet, entries: list[Line]) -> None:
    """No version names two models, serving can follow all of them, and the ledger knows each."""
    chains: dict[str, str] = {}
    slot = Slot(TASK.schema, TASK.model, TASK.seed)
    for meta, payload in outlet.updates:
        assert chains.setdefault(meta["version"], meta["chain"]) == meta["chain"]
        slot.apply(meta, payload)  # raises where one does not follow
    known = {entry.version: entry.sha256 for line in entries if isinstance(entry := line.entry, Version)}
    assert all(known[meta["version"]] == meta["sha256"] for meta, _ in outlet.updates)


@pytest.mark.parametrize("seed", range(3))
def test_a_learner_that_dies_again_and_again_is_the_undisturbed_one(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[str]
) -> None:
    clock = count()  # checkpoints come as often on a busy machine
    monkeypatch.setattr("streams.learn.ticks_ms", lambda: next(clock))
    chance, outlet, fate = random.Random(seed), ListOutlet(), Fate(monkeypatch)
    spans, died, at_once = iter(lambda: chance.randint(1, 70), 0), 0, chance.choice([1, 3, 50])
    steps = []
    for learner in lives(fate, tmp_path, outlet, spans, at_once=at_once, checkpoint_every_ms=40):
        died += 1
        steps.append(learner.training.step)
        again = logs.learner(TASK, tmp_path, log(), outlet)
        again.start()
        assert logs.digest(again.training.arena) == undisturbed[again.training.step]
        again._ledger.close()
    assert died > 3
    assert steps[-1] == len(undisturbed) - 1
    check_history(lines(again))
    check_updates(outlet, lines(again))


def test_what_was_published_is_published_again_only_where_it_was_lost(tmp_path: Path) -> None:
    outlet = ListOutlet()
    first = logs.learner(TASK, tmp_path, log(), outlet, at_once=3, checkpoint_every_ms=10**6)
    first._checkpoint = lambda: None  # type: ignore[method-assign]  # it dies before
    first.run()
    sent = list(outlet.updates)
    assert len(sent) > 3
    outlet.updates = sent[:-1]  # the last one was written down, and the learner died before it was sent
    second = logs.learner(TASK, tmp_path, log(), outlet)
    second.start()
    second._ledger.close()
    assert [identity(meta) for meta, _ in outlet.updates] == [identity(meta) for meta, _ in sent]
    assert [payload for _, payload in outlet.updates] == [payload for _, payload in sent]


@pytest.mark.parametrize("checkpoint", [True, False])
def test_what_a_version_had_learned_is_known_after_a_restart_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    clock, outlet = count(0, 20), ListOutlet()  # refreshes come as often on a busy machine
    monkeypatch.setattr("streams.learn.ticks_ms", lambda: next(clock))
    first = logs.learner(TASK, tmp_path, log(), outlet, at_once=3, checkpoint_every_ms=10**6)
    if not checkpoint:  # it dies before: all is made again from the ledger
        first._checkpoint = lambda: None  # type: ignore[method-assign]
    first.run()
    second = logs.learner(TASK, tmp_path, log(), outlet)
    second.start()
    second._ledger.close()
    entries = [line.entry for line in lines(first)]
    versions = [entry for entry in entries if isinstance(entry, Version) and entry.lineage == "L1"]
    assert len(versions) > 3
    for version in versions:
        told = first._publisher.learned(version.version)
        assert version.examples * 15 / 16 <= told <= version.examples
        assert second._publisher.learned(version.version) == told
    assert first._publisher.learned("L1.0") == first._publisher.learned("L99.1") == 0


def identity(meta: Meta) -> tuple[str, str, str]:
    return meta["version"], meta["chain"], meta["sha256"]


def run_half(data: Path, outlet: ListOutlet, part: Mapping[int, list[Record]]) -> Learner:
    learner = logs.learner(TASK, data, part, outlet, at_once=3)
    learner.run()
    return learner


def halves() -> tuple[dict[int, list[Record]], dict[int, list[Record]]]:
    return (
        {p: found[: len(found) // 2] for p, found in log().items()},
        {p: found[len(found) // 2 :] for p, found in log().items()},
    )


def test_a_lost_disk_of_the_ledger_costs_no_row(tmp_path: Path) -> None:
    outlet = ListOutlet()
    first = run_half(tmp_path, outlet, halves()[0])
    kept(first).ledger_path.unlink()
    second = logs.learner(TASK, tmp_path, log(), outlet)
    second.run()
    assert second.training.arena.examples == ROWS
    check_history(lines(second))
    check_updates(outlet, lines(second))


def test_without_its_ledger_a_learner_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    outlet = ListOutlet()
    first = run_half(tmp_path, outlet, halves()[0])
    kept(first).ledger_path.unlink()
    for name in kept(first).store.list(f"{kept(first).ledger}/"):
        kept(first).store.delete(name)
    second = logs.learner(TASK, tmp_path, log(), outlet)
    second.run()
    assert second.training.arena.examples == ROWS
    check_follow(outlet)


def check_follow(outlet: ListOutlet) -> None:
    slot = Slot(TASK.schema, TASK.model, TASK.seed)
    for meta, payload in outlet.updates:
        slot.apply(meta, payload)


def test_rows_that_kafka_deleted_before_they_were_repeated(tmp_path: Path) -> None:
    outlet = ListOutlet()
    first = logs.learner(TASK, tmp_path, halves()[0], outlet, checkpoint_every_ms=10**6)
    first._checkpoint = lambda: None  # type: ignore[method-assign]
    first.run()
    second = logs.learner(TASK, tmp_path, halves()[1], outlet)
    second.run()
    left = sum(len(logs.decode_labelled(record.value)) for found in halves()[1].values() for record in found)
    assert second.training.arena.examples == left
    assert [type(line.entry) for line in lines(second)].count(Void) == 1
    check_follow(outlet)


def test_what_was_learned_after_rows_were_gone_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.learn.CHECKPOINT_WORK_MS", 10**9)
    outlet, (early, late) = ListOutlet(), halves()

    def dies() -> None:
        raise Dies

    for rows in (early, late):  # neither comes to a checkpoint that is due
        learner = logs.learner(TASK, tmp_path, rows, outlet, checkpoint_every_ms=10**9)
        learner._source.on_end = dies  # type: ignore[attr-defined]
        with pytest.raises(Dies):
            learner.run()
        learner._ledger.close()
    assert [type(line.entry) for line in lines(learner)].count(Void) == 1
    again = logs.learner(TASK, tmp_path, late, outlet)
    again.start()
    again._ledger.close()
    assert again.training.step == learner.training.step
    assert logs.digest(again.training.arena) == logs.digest(learner.training.arena)
    assert [type(line.entry) for line in lines(again)].count(Void) == 1
    check_follow(outlet)


def test_new_settings_take_over_what_was_learned(tmp_path: Path) -> None:
    outlet = ListOutlet()
    run_half(tmp_path, outlet, halves()[0])
    other = replace(TASK, challenger=replace(TASK.challenger, learning_rate=0.02))
    second = logs.learner(other, tmp_path, log(), outlet)
    second.run()
    assert second.training.arena.examples == ROWS
    changes = [line.entry for line in lines(second) if isinstance(line.entry, Settings)]
    assert [(change.fresh, change.settings["challenger"]["learning_rate"]) for change in changes] == [
        (True, 0.05),
        (False, 0.02),
    ]
    check_history(lines(second))


def test_the_champion_takes_up_how_it_is_to_learn_and_stays_what_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outlet = ListOutlet()
    first = run_half(tmp_path, outlet, halves()[0]).training.arena.champion
    other = replace(TASK, model=replace(TASK.model, learning_rate=0.0007, optimiser="sgd", hidden=(8,)))
    with caplog.at_level("INFO"):
        second = logs.learner(other, tmp_path, log(), outlet)
        second.start()
    now = second.training.arena.champion
    assert (now.config.learning_rate, now.config.optimiser) == (0.0007, "sgd")
    assert (now.config.hidden, now.version, now.chain) == (TASK.model.hidden, first.version, first.chain)
    numbers, categories = (
        np.zeros((1, len(TASK.numbers)), np.float32),
        np.ones((1, TASK.schema.ids), np.int64),
    )
    np.testing.assert_array_equal(now.score(numbers, categories), first.score(numbers, categories))
    assert "goes on with the new optimiser, learning_rate" in caplog.text
    assert "model hidden changed, and L" in caplog.text
    second.run()
    check_follow(outlet)
    check_history(lines(second))
    last = second.training.arena.champion
    third = logs.learner(other, tmp_path, log(), outlet)
    third.start()
    again = third.training.arena.champion
    assert (again.config, again.version) == (last.config, last.version)
    np.testing.assert_array_equal(again.score(numbers, categories), last.score(numbers, categories))


def test_other_features_begin_anew(tmp_path: Path) -> None:
    outlet = ListOutlet()
    run_half(tmp_path, outlet, halves()[0])
    other = logs.small_task(more="calendar = false")
    rows = logs.labelled(other, 500)
    second = logs.learner(other, tmp_path, logs.records(other, rows), outlet)
    second.run()
    assert second.training.arena.examples == 500
    whole = [line.entry for line in lines(second) if isinstance(line.entry, Settings)]
    assert [entry.fresh for entry in whole] == [True, True]


def test_old_checkpoints_stay_while_the_topic_has_what_follows_them() -> None:
    hour = 3_600_000
    metas = {step: {"positions": {"0": [step * 10, 0]}, "created_ms": step * hour} for step in range(1, 40)}
    every = ANCHOR_EVERY_MS // hour
    assert anchors(metas, {0: 0}) == [1, *range(every, 40, every)]
    assert anchors(metas, {0: 155}) == [16, *range(3 * every, 40, every)]
    assert anchors(metas, {0: 1000}) == []


def test_the_newest_checkpoints_and_those_of_some_age_are_kept(tmp_path: Path) -> None:
    learner = run_half(tmp_path, ListOutlet(), log())
    found = checkpoint.metas(kept(learner).store, kept(learner).checkpoints)
    assert len(found) <= 4
    assert Counter(meta["schema"] for meta in found.values()) == {TASK.schema.hash: len(found)}

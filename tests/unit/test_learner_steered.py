"""What a person asks of a learner is in its ledger, so a life after a crash has done it too."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.blobs import Blobs
from infra.settings import Settings
from learners.costs import Costs
from learners.entries import Steered
from learners.registry import Registry
from learners.rollback import Scored
from streams.control import Command, Control
from streams.fleet import Refusal, Report
from streams.heads import Heads
from streams.kept import Kept
from streams.learn import Learner
from streams.outlet import ListOutlet
from streams.rebuild import rebuild
from streams.task import Task
from streams.task_parse import parse_task
from tests import learner_log as logs

TASK = logs.small_task()
ROWS = 4_000
Asked = Command | Report


class Dies(Exception):
    """Stands for kill -9."""


class Voices(Control):
    """Says once what `say` gives, as soon as that is something, and keeps no connection."""

    def __init__(self, say: Callable[[Learner], Asked | None]) -> None:
        self.position, self._say = 0, say
        self.learner: Learner
        self.said: Asked | None = None

    def start(self) -> None:
        """See Control."""

    def close(self) -> None:
        """See Control."""

    def poll(self) -> Iterator[Asked]:
        """See Control."""
        if self.said is None and (asked := self._say(self.learner)):
            self.said = asked
            yield asked


class Drill(Voices):
    """Says all that `say` gives."""

    def poll(self) -> Iterator[Asked]:
        """See Control."""
        if asked := self._say(self.learner):
            yield asked


class Offsets(Voices):
    """Puts what `say` gives into a topic, once, and reads that by `position`, as Control does."""

    topic: list[Asked]

    def poll(self) -> Iterator[Asked]:
        """See Control."""
        if not self.topic and (asked := self._say(self.learner)):
            self.topic.append(asked)
        for each in self.topic[self.position or 0 :]:
            self.position = (self.position or 0) + 1
            yield each


def asked(action: Any, target: str, live: str) -> Command:
    return Command("c-1", action, target, live, "a drill", 5)


def heads(learner: Learner) -> Heads:
    return learner._publisher.heads


def challenger_wins(learner: Learner) -> Command | None:
    arena = learner.training.arena
    named = [challenger.lineage for challenger in arena.challengers]
    return asked("promote", named[0], arena.champion.lineage) if named else None


def to_the_first(learner: Learner) -> Command | None:
    stored, arena = list(heads(learner).kept()), learner.training.arena
    return asked("rollback", stored[0], arena.champion.lineage) if arena.examples > 1_000 else None


def refused(learner: Learner) -> Report | None:
    arena = learner.training.arena
    if arena.guard is None:
        return None
    version = arena.champion.version
    return Report(TASK.name, "w", "L1.1", 5, (Refusal(version, "golden", "other scores"),))


def life(
    data: Path,
    say: Callable[[Learner], Asked | None] | None,
    outlet: ListOutlet,
    task: Task = TASK,
    kind: type[Voices] = Voices,
) -> Learner:
    """A learner over the whole log that listens to `say`, between any two steps."""
    voices = kind(say) if say else None
    log = logs.records(task, logs.labelled(task, ROWS))
    settings = Settings(kafka="none:1", data=data, partitions=logs.PARTITIONS)
    source = logs.EndingLog(log, 3, lambda: None)
    learner = Learner(task, settings, source, outlet, voices, checkpoint_every_ms=10**9)
    source.on_end = learner.stop
    if voices:
        voices.learner = learner
    return learner


def nothing(_: Learner) -> None:
    """Says nothing: a challenger that is slow is found by its time."""


def slow_challengers() -> Iterator[float]:
    """A clock for `learners.costs`: a challenger, timed before the champion in every turn, takes 0.2 s, that 0.01 s."""
    now = 0.0
    while True:
        for took in (0.2, 0.01):
            yield now
            yield (now := now + took)


@pytest.mark.parametrize(
    ("say", "action"),
    [
        (challenger_wins, "promote"),
        (to_the_first, "rollback"),
        (refused, "rollback"),
        (nothing, "reject"),
    ],
)
def test_it_is_repeated_after_a_crash(
    say: Callable[[Learner], Asked | None], action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.learn.STEER_EVERY_MS", 0 if say is not nothing else 10**9)
    if say is nothing:
        clock = partial(next, slow_challengers())
        monkeypatch.setattr("streams.learn.Costs", partial(Costs, clock=clock))
    monkeypatch.setattr("streams.learn.CHECKPOINT_WORK_MS", 10**9)
    outlet = ListOutlet()
    first = life(tmp_path, say, outlet)

    def die() -> None:
        raise Dies

    setattr(first, "_checkpoint", die)  # noqa: B010
    with pytest.raises(Dies):
        first.run()
    first._ledger.close()
    told = [value.decode() for topic, value in outlet.sent if topic.endswith(".audit")]
    assert any(f'"action":"{action}"' in row for row in told)
    if say is nothing:
        slow = [
            row for row in told if "it takes too long to score: 200.00 ms for 64 rows against 10.00 ms" in row
        ]
        assert len(slow) == sum('"action":"start"' in row for row in told)
        assert not any('"action":"promote"' in row for row in told)
    updates = len(outlet.updates)

    second = life(tmp_path, None, outlet)
    second.start()
    assert second.training.step == first.training.step
    assert logs.digest(second.training.arena) == logs.digest(first.training.arena)
    assert second.training.arena.champion.version == first.training.arena.champion.version
    assert outlet.updates[updates:] == []  # all versions were out there already
    second._ledger.close()
    barred = Registry(Blobs(Settings("", tmp_path).blobs), f"models/{TASK.name}/registry").quarantined()
    assert bool(barred) is (action == "rollback")


def spoiled_canary(learner: Learner) -> Report | None:
    """A worker makes a score that is no number by the canary, some steps after that began."""
    canary = learner.training.arena.trials.canary
    if canary is None or canary.test.count < 1_200:
        return None
    return Report(TASK.name, "w", f"{canary.lineage}.1", 5, canary=True, scored=Scored(100, 1, 1, 0))


def spoiled_when_all_is_sent(learner: Learner) -> Report | None:
    """The same, at the end of the log: the champion has nothing new that would be sent anyway."""
    return None if learner.training.arena.champion.unsent else spoiled_canary(learner)


def with_canary() -> Task:
    """A winner is a canary first, to the end of the log; everything is refreshed at once."""
    text = TASK.text.replace("max_events = 2000", "max_events = 90000")
    text += "[guard]\ncanary = 0.25\ncanary_events = 90000\n"
    task = parse_task(text, "small.toml", TASK.path)
    return replace(task, serving=replace(task.serving, refresh_every_ms=0))


def is_whole(meta: dict[str, Any]) -> bool:
    return bool(meta["kind"] == "swap")


@pytest.mark.parametrize("say", [nothing, spoiled_canary])
def test_a_canary_and_its_end_are_published_and_found_again_after_a_crash(
    say: Callable[[Learner], Asked | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.learn.STEER_EVERY_MS", 0)
    monkeypatch.setattr("streams.learn.CHECKPOINT_WORK_MS", 10**9)
    task, outlet = with_canary(), ListOutlet()
    first = life(tmp_path, say, outlet, task)

    def die() -> None:
        raise Dies

    setattr(first, "_checkpoint", die)  # noqa: B010
    with pytest.raises(Dies):
        first.run()
    first._ledger.close()
    metas = [meta for meta, _ in outlet.updates]
    out = [meta for meta in metas if "canary" in meta]
    began = metas.index(out[0])
    assert is_whole(out[0])
    assert {(meta["lineage"], meta["canary"]) for meta in out} == {(out[0]["lineage"], 0.25)}
    assert any(not is_whole(meta) for meta in out)  # it is refreshed, and so is the champion
    assert any(meta["lineage"] == "L1" and not is_whole(meta) for meta in metas[began:])
    ended = [meta["lineage"] for meta in metas[began:] if is_whole(meta) and "canary" not in meta]
    assert ended == ([] if say is nothing else ["L1"])
    stored = heads(first).canary()
    assert (stored is None) is (say is spoiled_canary)
    registry = Registry(Blobs(Settings("", tmp_path).blobs), f"models/{TASK.name}/registry")
    barred = {name: record.evidence for name, record in registry.quarantined().items()}
    assert list(barred) == ([] if say is nothing else [out[0]["lineage"]])
    assert all(facts["broken"] == 1 and facts["canary"]["share"] == 0.25 for facts in barred.values())

    second = life(tmp_path, None, outlet, task)
    count = len(outlet.updates)
    second.start()
    assert logs.digest(second.training.arena) == logs.digest(first.training.arena)
    again = [(meta["lineage"], meta.get("canary")) for meta, _ in outlet.updates[count:]]
    # A learner that starts sends a canary whole once more; all else was out there already.
    assert again == ([(out[0]["lineage"], 0.25)] if say is nothing else [])
    second._ledger.close()
    found = rebuild(
        task,
        Kept.of(Settings("none:1", tmp_path), task.name),
        out[-1]["version"],
        logs.EndingLog(logs.records(task, logs.labelled(task, ROWS)), 3, lambda: None),
        lambda done, steps: None,
    )
    assert (found.sha256, found.differs) == (out[-1]["sha256"], None)


@pytest.mark.parametrize("dies_in", ["whole", "publish", "drop_canary"])
def test_the_end_of_a_canary_is_sent_though_the_learner_dies_in_it(
    dies_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.learn.STEER_EVERY_MS", 0)
    monkeypatch.setattr("streams.learn.CHECKPOINT_WORK_MS", 10**9)
    task, outlet = with_canary(), ListOutlet()
    first = life(tmp_path, spoiled_when_all_is_sent, outlet, task)
    rounds = iter([None] * 9 + [first.stop])  # some go by at the end of the log
    setattr(first._source, "on_end", lambda: (next(rounds, None) or int)())  # noqa: B010
    owner: Any = {"whole": first._publisher, "publish": outlet, "drop_canary": heads(first)}[dies_in]
    do = getattr(owner, dies_in)

    def die(*given: Any) -> Any:
        is_end = dies_in != "publish" or (is_whole(given[0]) and "canary" not in given[0])
        if is_end and heads(first).canary() is not None:
            raise Dies
        return do(*given)

    with monkeypatch.context() as patch:
        patch.setattr(owner, dies_in, die)
        with pytest.raises(Dies):
            first.run()
    first._ledger.close()
    assert heads(first).canary() is not None

    second = life(tmp_path, None, outlet, task)
    second.start()
    second._ledger.close()
    assert second.training.arena.trials.canary is None
    last = outlet.updates[-1][0]
    assert (last["lineage"], is_whole(last), "canary" in last) == ("L1", True, False)
    assert heads(second).canary() is None
    head = heads(second).get()
    assert head is not None
    assert head.meta["version"] == last["version"]


def decisions(outlet: ListOutlet, *actions: str) -> list[dict[str, Any]]:
    """Those of the audit that are of these actions, in order."""
    rows = [json.loads(value) for topic, value in outlet.sent if topic.endswith(".audit")]
    return [row for row in rows if row["action"] in actions]


def test_a_promotion_is_not_done_twice_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.learn.STEER_EVERY_MS", 0)
    monkeypatch.setattr("streams.learn.CHECKPOINT_WORK_MS", 10**9)
    monkeypatch.setattr(Offsets, "topic", [], raising=False)
    task, outlet = with_canary(), ListOutlet()

    def promoted(learner: Learner) -> Command | None:
        if (command := challenger_wins(learner)) is not None:
            learner._checkpoint()  # has the position before it
        return command

    first = life(tmp_path, promoted, outlet, task, Offsets)
    steer = first.training.steer

    def die(step: Steered) -> None:
        steer(step)
        raise Dies

    setattr(first.training, "steer", die)  # noqa: B010
    with pytest.raises(Dies):
        first.run()
    first._ledger.close()
    second = life(tmp_path, nothing, outlet, task, Offsets)
    second.run()
    canary = second.training.arena.trials.canary
    assert second._control is not None
    assert second._control.position == 1  # it was read once more
    assert canary is not None  # a second promotion would have ended its time as one
    assert second.training.arena.champion.lineage == "L1"
    assert {row["lineage"] for row in decisions(outlet, "canary", "promote", "decline")} == {canary.lineage}


def back(learner: Learner) -> Command | None:
    arena = learner.training.arena
    return asked("rollback", "", arena.champion.lineage) if arena.examples > 500 else None


def test_a_stored_model_for_other_features_is_declined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.learn.STEER_EVERY_MS", 0)
    outlet = ListOutlet()
    life(tmp_path, challenger_wins, outlet).run()
    other = parse_task(TASK.text.replace("calendar = true", "calendar = false"), "small.toml", TASK.path)
    second = life(tmp_path, back, outlet, other)
    second.run()
    [declined] = decisions(outlet, "decline", "rollback")
    assert declined["action"] == "decline"
    assert "was made for other features" in declined["reason"]
    assert second.training.arena.examples == ROWS


def test_without_a_target_a_rollback_goes_to_what_was_live_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.learn.STEER_EVERY_MS", 0)
    text = TASK.text.replace("[drift]\n", '[drift]\npolicy = "always"\n') + "[guard]\nevents = 60\n"
    task, outlet = parse_task(text.replace('policy = "drift"\n', ""), "small.toml", TASK.path), ListOutlet()

    def two_swaps_and_back(learner: Learner) -> Command | None:
        arena, swaps = learner.training.arena, len(decisions(outlet, "promote", "rollback"))
        if arena.guard is not None or swaps == 3:
            return None
        return challenger_wins(learner) if swaps < 2 else asked("rollback", "", arena.champion.lineage)

    life(tmp_path, two_swaps_and_back, outlet, task, Drill).run()
    second, third, rolled = decisions(outlet, "promote", "rollback")
    assert (second["champion"], third["champion"]) == ("L1", second["lineage"])
    assert (rolled["action"], rolled["champion"]) == ("rollback", third["lineage"])
    parent = rolled["evidence"].get("parent", "L1")  # L1 goes on learning all the time
    assert parent.partition(".")[0] == second["lineage"]

"""What a person asks of a learner is in its ledger, so a life after a crash has done it too."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.blobs import Blobs
from infra.settings import Settings
from learners.costs import Costs
from learners.registry import Registry
from streams.control import Command, Control
from streams.fleet import Refusal, Report
from streams.heads import Heads
from streams.learn import Learner
from streams.outlet import ListOutlet
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


def life(data: Path, say: Callable[[Learner], Asked | None] | None, outlet: ListOutlet) -> Learner:
    """A learner over the whole log that listens to `say`, between any two steps."""
    voices = Voices(say) if say else None
    log = logs.records(TASK, logs.labelled(TASK, ROWS))
    settings = Settings(kafka="none:1", data=data, partitions=logs.PARTITIONS)
    source = logs.EndingLog(log, 3, lambda: None)
    learner = Learner(TASK, settings, source, outlet, voices, checkpoint_every_ms=10**9)
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

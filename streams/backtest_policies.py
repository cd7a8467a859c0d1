"""When a model learns: the policies that a backtest runs side by side.

All begin with the same untrained model and learn from every labelled example until the warm-up is over. From then on:

  static      never learns again
  periodic    learns at intervals, offline, from what became known since the last time
  continuous  goes on learning from every example, after it was scored
  drift       learns for a while after an alarm, otherwise not: retraining on drift, as it is usually done
  full        what Driftline does live: the arena of champion and challengers, with tests and promotions
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from learners.arena import Arena
from learners.batch import Batch
from learners.buffer import BUFFER, Buffer
from learners.challenger import Decision
from learners.detectors import Detectors
from learners.drift import Alert
from learners.judge import Judge
from learners.trainer import Trainer
from streams.task import Task

POLICIES = ("static", "periodic", "continuous", "drift", "full")
FIRST = "L1"
NO_ROWS = 10**15  # metric rows are not asked for: a backtest measures by itself, when the event happens


@dataclass(frozen=True)
class Retraining:
    """Settings of `periodic`: every `every_ms` of event time, `passes` times over what became known since."""

    every_ms: int
    passes: int = 1


class Policy(Protocol):
    """A model and when it learns. `trainer` is the one that should serve; it may become another one.

    `alerts` and `decisions` are all there were so far, in order.
    """

    alerts: list[Alert]
    decisions: list[Decision]

    @property
    def trainer(self) -> Trainer:
        """The model that should serve now."""

    @property
    def canary(self) -> Trainer | None:
        """The model that should serve `guard.canary` of the entities in its place, if there is one."""

    def learn(self, batch: Batch, now_ms: int, *, warm: bool) -> None:
        """Labelled examples, `served` by this policy, in their order. `now_ms` is event time; `warm`: the warm-up is
        not over, learn.
        """


def make_policy(name: str, task: Task, retraining: Retraining) -> Policy:
    """The policy of one of `POLICIES`; KeyError for another name."""
    makers: dict[str, Callable[[], Policy]] = {
        "static": lambda: Static(task),
        "periodic": lambda: Periodic(task, retraining),
        "continuous": lambda: Continuous(task),
        "drift": lambda: OnDrift(task),
        "full": lambda: Full(task),
    }
    return makers[name]()


class _One:
    """A policy with a single lineage, without alarms."""

    canary = None

    def __init__(self, task: Task) -> None:
        self._task = task
        self.trainer = Trainer(task.schema, task.model, task.seed, FIRST)
        self.alerts: list[Alert] = []
        self.decisions: list[Decision] = []


class Static(_One):
    """Learns in the warm-up only."""

    def learn(self, batch: Batch, now_ms: int, *, warm: bool) -> None:
        """See Policy."""
        if warm:
            self.trainer.train(batch)


class Continuous(_One):
    """Learns always."""

    def learn(self, batch: Batch, now_ms: int, *, warm: bool) -> None:
        """See Policy."""
        self.trainer.train(batch)


class Periodic(_One):
    """Learns at intervals of event time, from what became known since the last time. It goes on from its weights."""

    def __init__(self, task: Task, retraining: Retraining) -> None:
        super().__init__(task)
        self._settings = retraining
        self._waiting: list[Batch] = []
        self._last_ms: int | None = None

    def learn(self, batch: Batch, now_ms: int, *, warm: bool) -> None:
        """See Policy."""
        if warm:
            self.trainer.train(batch)
            self._last_ms = now_ms
            return
        self._waiting.append(batch)
        if self._last_ms is None:
            self._last_ms = now_ms
        if now_ms - self._last_ms >= self._settings.every_ms:
            self._last_ms = now_ms
            self._retrain(Batch.concat(self._waiting))
            self._waiting = []

    def _retrain(self, known: Batch) -> None:
        for _ in range(self._settings.passes):
            self.trainer.train(known)


class OnDrift(_One):
    """Learns after an alarm, until `drift.cooldown` more examples have been seen; otherwise it is as it is.

    The detectors are those of the arena, with the task's settings. An alarm begins with one pass over the kept
    examples since the onset of the drift. An alarm while it learns makes it learn longer.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._detectors = Detectors(task.schema, task.drift)
        self._judge = Judge(task.schema.target, task.model)
        self._buffer = Buffer(BUFFER)
        self._left = 0  # examples that it will still learn from

    def learn(self, batch: Batch, now_ms: int, *, warm: bool) -> None:
        """See Policy."""
        for step in _steps(batch, self._task.model.batch_size):
            self._step(step, warm)

    def _step(self, step: Batch, warm: bool) -> None:
        alerts = self._detect(step)
        self.alerts += alerts
        self._buffer.add(step)
        learning = warm or self._left > 0
        if learning:
            self.trainer.train(step)
            self._tick(len(step), warm)
        if alerts and not warm:
            if not learning:
                self._catch_up(alerts[0].since_ms)
            self._left = self._task.drift.cooldown

    def _detect(self, step: Batch) -> list[Alert]:
        step = step.take(~step.corrects)  # the rest was looked at when it was here first
        if not len(step):
            return []
        score = self.trainer.score(step.numbers, step.categories)
        served = np.where(np.isfinite(step.served), step.served, score)  # NaN is all of a row or nothing
        losses = self._judge.losses(step.label, served)
        self._judge.note(step.label, served)
        return self._detectors.update(step, score, losses, self.trainer.version)

    def _tick(self, examples: int, warm: bool) -> None:
        if warm:
            return
        self._left -= examples
        if self._left <= 0:
            self._detectors.swapped()  # what was served by the model as it was is no news any more

    def _catch_up(self, since_ms: int) -> None:
        for kept in self._buffer:
            self.trainer.train(kept.take(kept.event_ms >= since_ms))


class Full:
    """The arena, as the learner runs it."""

    def __init__(self, task: Task) -> None:
        self._arena = Arena(
            task.schema,
            task.model,
            task.challenger,
            task.drift,
            task.seed,
            metrics_every=NO_ROWS,
            guard=task.guard,
            others=task.others,
            beside=task.arena,
            tuning=task.tuning,
            trust=task.trust,
        )
        self.alerts: list[Alert] = []
        self.decisions: list[Decision] = []

    @property
    def trainer(self) -> Trainer:
        """See Policy."""
        return self._arena.champion

    @property
    def canary(self) -> Trainer | None:
        """See Policy."""
        serving = self._arena.trials.canary
        return None if serving is None else serving.trainer

    def learn(self, batch: Batch, now_ms: int, *, warm: bool) -> None:
        """See Policy. An arena has no warm-up: its champion always learns."""
        for event in self._arena.observe(batch, created_ms=now_ms):
            if isinstance(event, Alert):
                self.alerts.append(event)
            elif isinstance(event, Decision):
                self.decisions.append(event)


def _steps(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of `size` rows, the last one smaller: as the arena works it off."""
    for start in range(0, len(batch), size):
        yield batch.slice(start, min(start + size, len(batch)))

"""A backtest: one pass over a stream, the same features for all policies, and every score as it would have been served.

A micro-batch is one round of the live roles, in this order:

1. serve: features, then every policy scores the rows with the model that it serves;
2. join: labels that are known by now meet their rows, and reach the label rates;
3. learn: every policy gets the labelled rows with the scores that it gave them;
4. refresh: what was learned reaches the model that serves, at once or every `refresh_ms` of event time.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, lineage_number, refresh_number
from learners.late import real_share
from learners.slot import Slot, encode_full, encode_refresh
from learners.trainer import Trainer
from streams.backtest_policies import FIRST, Policy, Retraining, make_policy
from streams.backtest_stream import MicroBatch, Path, compile_kernels, cut
from streams.canary import arms
from streams.exploration import Marks, marks
from streams.feed import Item
from streams.privacy import Pseudonymiser
from streams.rows import Labelled, Rows
from streams.task import Task

_NEVER = -(2**62)


@dataclass(frozen=True)
class Settings:
    """How a stream is worked off.

    `batch` and `within_ms` bound a micro-batch (`backtest_stream.cut`). `warm_after` labelled examples end the
    warm-up. `refresh_ms` is event time between two refreshes, 0 for one after every micro-batch. `keep_rows` keeps ids,
    times and versions of all predictions.
    """

    batch: int
    within_ms: int
    warm_after: int
    retraining: Retraining
    refresh_ms: int = 0
    keep_rows: bool = False


class Serving:
    """A model that scores: a trainer's weights as of the newest refresh.

    `numbers` has the newest refresh number of each lineage; all models that serve share it, so that no version names
    two of them.
    """

    def __init__(self, task: Task, refresh_ms: int, numbers: dict[str, int], lineage: str = "") -> None:
        self._every_ms, self._last_ms = refresh_ms, _NEVER
        self._slot = Slot(task.schema, task.model, task.seed) if refresh_ms else None
        self._numbers, self._steps, self._lineage = numbers, 0, lineage

    def follow(self, trainer: Trainer, now_ms: int) -> None:
        """Take what the trainer has learned, if a refresh is due; another lineage is taken at once."""
        swap = trainer.lineage != self._lineage
        if not swap and (trainer.steps == self._steps or now_ms - self._last_ms < self._every_ms):
            return
        self._lineage, self._steps, self._last_ms = trainer.lineage, trainer.steps, now_ms
        self._numbers[self._lineage] = self._numbers.get(self._lineage, 0) + 1
        if self._slot is not None:
            encode = encode_full if swap else encode_refresh
            self._slot.apply(*encode(trainer, event_ms=now_ms, created_ms=max(now_ms, 0)))

    def score(self, trainer: Trainer, rows: Rows) -> NDArray[np.float32]:
        """Scores float32 [n]; without a slot the trainer's own weights are the newest refresh."""
        if self._slot is None:
            return trainer.score(rows.numbers, rows.categories)
        return self._slot.score(rows.numbers, rows.categories)[0]

    @property
    def refreshed(self) -> bool:
        """Whether it holds a version of the trainer, and not what the trainer has learned by now."""
        return self._slot is not None

    @property
    def version(self) -> str:
        """Lineage and number of the refresh, such as "L1.41"."""
        if self._slot is None:
            return f"{self._lineage}.{self._numbers.get(self._lineage, 0)}"
        return self._slot.version


class Lane:
    """One policy's run: what it served, and the seconds of processor time it took.

    `scores` float32 [events] or [events, K] by number of the event, NaN where there is none; `arm` int32 [events], as
    live examples have it, 0 where there was no canary; `swaps` of the model that served.
    """

    def __init__(self, name: str, task: Task, settings: Settings, events: int) -> None:
        self.name, self._task = name, task
        self.policy: Policy = make_policy(name, task, settings.retraining)
        self.scores = task.schema.target.unknown(events)
        self.arm = np.zeros(events, np.int32)
        # By event: `lineage_number` and, where refreshes are made at all, `refresh_number`.
        self._lineage_of, self._refresh_of = np.zeros(events, np.int32), np.zeros(events, np.int32)
        self.versions: dict[str, int] = {}  # names of versions, numbered in their order ...
        self.version_of = np.full(events if settings.keep_rows else 0, -1, np.int32)  # ... by event
        self.seconds = 0.0
        numbers: dict[str, int] = {}
        self._serving = Serving(task, settings.refresh_ms, numbers, FIRST)
        self._beside = Serving(task, settings.refresh_ms, numbers)  # a canary, while there is one
        self._keep_rows = settings.keep_rows

    @property
    def swaps(self) -> int:
        """How often another lineage took over."""
        return sum(decision.action == "promote" for decision in self.policy.decisions)

    def score(self, rows: Rows) -> None:
        """Serve the rows, those of its share of the entities by the canary."""
        begin = time.process_time()
        canary = self.policy.canary
        if canary is None:
            self._serve(rows, self._serving, self.policy.trainer)
        else:
            arm = arms(rows.keys[:, 0], canary.lineage, self._task.guard.canary)
            self.arm[rows.offset] = arm
            self._serve(rows.take(arm < 0), self._serving, self.policy.trainer)
            self._serve(rows.take(arm > 0), self._beside, canary)
        self.seconds += time.process_time() - begin

    def _serve(self, rows: Rows, serving: Serving, trainer: Trainer) -> None:
        if not len(rows):
            return
        self.scores[rows.offset] = serving.score(trainer, rows)
        self._lineage_of[rows.offset] = lineage_number(serving.version)
        self._refresh_of[rows.offset] = refresh_number(serving.version) if serving.refreshed else 0
        if self._keep_rows:
            self.version_of[rows.offset] = self.versions.setdefault(serving.version, len(self.versions))

    def marks(self, ids: Sequence[str], offsets: NDArray[np.int64]) -> Marks:
        """What a decision by the served scores means for the labels of events, with their numbers [n]."""
        return marks(self._task.exploration, ids, self.scores[offsets], self._task.classes)

    def learn(self, labelled: Labelled, batch: Batch, now_ms: int, *, warm: bool) -> None:
        """Learn as the policy says, of labels that its own decisions would not have hidden; then refresh."""
        begin = time.process_time()
        at = labelled.rows.offset
        served, found = self.scores[at], self.marks(labelled.rows.ids, at)
        weight = real_share(labelled.label, served, labelled.late_share) * found.weight
        lineage, refresh = self._lineage_of[at], self._refresh_of[at]
        batch = replace(
            batch, served=served, weight=weight, arm=self.arm[at], lineage=lineage, refresh=refresh
        )
        if found.hidden.any():
            batch = batch.take(~found.hidden)
        if len(batch):
            self.policy.learn(batch, now_ms, warm=warm)
        self._serving.follow(self.policy.trainer, now_ms)
        if (canary := self.policy.canary) is not None:
            self._beside.follow(canary, now_ms)
        self.seconds += time.process_time() - begin


class Backtest:
    """One run. `labels` float32 [events] by number of the event, NaN where none was decided.

    `first` is the number of the first event after the warm-up, or None when the stream ended before: that one and
    later ones are evaluated. `seconds` of processor time are what reading, serve and join took, without the policies.
    """

    def __init__(
        self,
        task: Task,
        pseudonymiser: Pseudonymiser,
        policies: Sequence[str],
        events: int,
        settings: Settings,
    ) -> None:
        self.task, self.settings, self.events = task, settings, events
        self.path = Path(task, pseudonymiser)
        self.lanes = [Lane(name, task, settings, events) for name in policies]
        self.labels = np.full(events, np.nan, np.float32)
        self.times_ms = np.zeros(events, np.int64)
        self.ids: list[tuple[list[str], NDArray[np.int64]]] = []  # ids with their events' numbers
        self.accepted = self.labelled = self._seen = 0
        self.first: int | None = 0 if settings.warm_after <= 0 else None
        self.seconds = 0.0

    def run(self, items: Iterable[Item], on_progress: Callable[[int], None] | None = None) -> None:
        """Work all items off; `on_progress` hears how many are done."""
        compile_kernels(self.task)
        begin, busy, done = time.process_time(), 0.0, 0
        for micro in cut(items, self.settings.batch, self.settings.within_ms):
            busy += self._round(micro)
            done += len(micro.events) + len(micro.labels)
            if on_progress is not None:
                on_progress(done)
        self.seconds = time.process_time() - begin - busy

    def _round(self, micro: MicroBatch) -> float:
        """One micro-batch; the seconds that the policies took."""
        before = sum(lane.seconds for lane in self.lanes)
        rows = self.path.features(micro.events)  # 1
        self._seen += len(micro.events)
        if len(rows):
            self._note(rows)
            for lane in self.lanes:
                lane.score(rows)
        labelled = self.path.labelled(rows, micro.labels)  # 2
        if labelled is not None:
            self.labels[labelled.rows.offset] = labelled.label
            batch, warm = labelled.batch(), self.first is None
            for lane in self.lanes:
                lane.learn(labelled, batch, micro.time_ms, warm=warm)  # 3, 4
            self.labelled += int((~labelled.corrects).sum())
            if warm and self.labelled >= self.settings.warm_after:
                self.first = self._seen
        return sum(lane.seconds for lane in self.lanes) - before

    def _note(self, rows: Rows) -> None:
        self.accepted += len(rows)
        self.times_ms[rows.offset] = rows.event_ms
        if self.settings.keep_rows:
            self.ids.append((rows.ids, rows.offset))

    def evaluated(self) -> NDArray[np.int64]:
        """Numbers int64 [n] of the events that count: after the warm-up, and with a label."""
        labelled = np.flatnonzero(np.isfinite(self.labels))
        return labelled[labelled >= (self.events if self.first is None else self.first)]

    def metrics(self, lane: Lane, events: NDArray[np.int64] | None = None) -> dict[str, float]:
        """`Target.measure` of what a policy served for `events`, by default all that count."""
        at = self.evaluated() if events is None else events
        return self.task.schema.target.measure(self.labels[at], lane.scores[at])

    def positives(self, events: NDArray[np.int64]) -> int:
        """How many of these events have the label 1; none where labels are values."""
        return int((self.labels[events] > 0.5).sum()) if self.task.kind == "binary" else 0

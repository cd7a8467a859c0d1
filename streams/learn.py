"""The learn role: reads `labelled`, trains, watches for drift, publishes refreshes and swaps.

The learner is a log reader with hand-assigned partitions; its positions live in its own checkpoint, next to the weights
they led to, so every example is learned from exactly once in the history that survives. One round:

1. poll labelled rows, cut into batches of the model's batch size (`streams.labelled`);
2. every arm scores a batch before any arm learns it (`learners.arena`); what comes of it goes to its topics
   (`streams.announce`);
3. a promotion publishes the new champion whole, a swap (`streams.publishing`);
4. about every second, the rows and layers that changed go out, a refresh;
5. about every ten seconds, a checkpoint: everything the arena holds and the positions, manifest last; and a whole model
   for workers that start (`heads`).
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from infra.blobs import Blobs
from infra.clock import now_ms
from infra.kafka import make_producer, translated
from infra.metrics import Metrics
from infra.settings import Settings
from learners import checkpoint
from learners.arena import Arena, Decision, Event
from learners.batch import Batch
from learners.registry import Lineage, Registry
from streams.announce import Announcer
from streams.heads import Heads
from streams.labelled import LabelledReader
from streams.publishing import Publisher
from streams.task import Task
from streams.topics import Topics

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_MS = 10_000
_KEEP = 3


@dataclass
class _Clock:
    """When something was last done, and whether it is due again."""

    every_ms: int
    last_ms: int

    def due(self, now: int) -> bool:
        if now - self.last_ms < self.every_ms:
            return False
        self.last_ms = now
        return True


class Learner:
    """One learner of one task. `freeze_at_ms` keeps a copy of the champion as it was at that event time, to compare."""

    def __init__(self, task: Task, settings: Settings, *, freeze_at_ms: int | None = None) -> None:
        self._task, self._settings, topics = task, settings, Topics.of(task)
        self._blobs = Blobs(settings.blobs)
        self._prefix = f"learner/{task.name}"
        self._registry = Registry(self._blobs, f"models/{task.name}/registry")
        self._freeze_at_ms = freeze_at_ms
        self._arena = self._new_arena()
        self._step = 0
        self._event_ms = 0
        self._metrics = Metrics()
        self._producer = make_producer(settings.kafka)
        self._reader = LabelledReader(
            settings.kafka, topics.labelled, settings.partitions, task.rows_hash, self._metrics
        )
        self._announcer = Announcer(task, self._producer)
        heads = Heads(self._blobs, task.name)
        self._publisher = Publisher(
            settings.kafka, topics.model_updates, self._producer, heads, self._registry
        )
        self._stop = False

    def _new_arena(self) -> Arena:
        task = self._task
        return Arena(
            task.schema,
            task.model,
            task.challenger,
            task.drift,
            seed=task.seed,
            freeze_at_ms=self._freeze_at_ms,
        )

    def stop(self) -> None:
        """Ask `run` to end after its current round; safe in a signal handler."""
        self._stop = True

    def run(self) -> None:
        """Learn until stopped; the last thing is a checkpoint. Raises UserError when Kafka is lost for good."""
        with translated(self._settings.kafka):
            self._restore()
            self._publisher.hear()
            self._reader.start()
            self._publish_whole("the learner started")
            start = now_ms()
            refresh, keep = (
                _Clock(self._task.serving.refresh_every_ms, start),
                _Clock(CHECKPOINT_EVERY_MS, start),
            )
            while not self._stop:
                for batch in self._reader.poll(self._task.model.batch_size):  # 1
                    self._learn(batch)  # 2, 3
                now = now_ms()
                if self._arena.champion.unsent and refresh.due(now):
                    self._publish_refresh()  # 4
                if keep.due(now):
                    self._checkpoint()  # 5
            self._checkpoint()
            self._producer.flush()
            self._producer.close()
            self._reader.close()

    def _restore(self) -> None:
        found = checkpoint.load_newest(self._blobs, self._prefix)
        for reason in found.skipped:
            log.warning("checkpoint skipped: %s", reason)
        if found.checkpoint is None:
            self._begin("the first model")
            return
        meta, self._step = found.checkpoint.meta, found.checkpoint.step
        if meta["schema"] != self._task.schema.hash:
            self._begin(f"the features of {self._task.name} changed")
            return
        try:
            self._arena.load(found.checkpoint.files, meta["arena"])
        except (KeyError, ValueError, TypeError) as error:
            self._arena = self._new_arena()
            self._begin(f"checkpoint {self._step} is of another version of Driftline ({error!r})")
            return
        self._reader.positions = {int(p): offset for p, offset in meta["positions"].items()}
        self._event_ms = meta["event_ms"]
        self._publisher.load(meta["updates"])
        log.info("continuing %s from checkpoint %d", self._arena.champion.version, self._step)

    def _begin(self, why: str) -> None:
        """Learn with an untrained model, from the oldest labelled record there is."""
        log.warning("learning begins: %s", why)
        self._record_lineage(self._arena.champion.lineage, None, why, 0)

    def _learn(self, batch: Batch) -> None:
        """One step of the arena, and what comes of it."""
        self._event_ms = max(self._event_ms, int(batch.event_ms.max()))
        self._metrics.count("trained_total", len(batch))
        self._handle(self._arena.observe(batch, created_ms=now_ms()))
        self._announcer.tell_feature_drift(self._arena.psi(), self._event_ms)

    def _handle(self, events: Iterable[Event]) -> None:
        for event in events:
            self._announcer.tell(event)
            if isinstance(event, Decision):
                self._follow(event)

    def _follow(self, decision: Decision) -> None:
        """Do what a decision asks for."""
        if decision.action == "start":
            copied = decision.evidence["kind"] == "warm"
            parent = self._arena.champion.version if copied else None
            self._record_lineage(decision.lineage, parent, decision.reason, decision.event_ms)
        if decision.action == "promote":
            self._publish_whole(decision.reason)

    def _record_lineage(self, name: str, parent: str | None, why: str, event_ms: int) -> None:
        config = self._arena.config_of(name)
        self._registry.record(
            Lineage(
                name,
                parent,
                config.to_dict(),
                self._arena.seed_of(name),
                self._task.schema.hash,
                why,
                event_ms,
                now_ms(),
            )
        )

    def _publish_refresh(self) -> None:
        self._publisher.refresh(self._arena.champion, self._event_ms)
        self._metrics.count("refreshes_total")

    def _publish_whole(self, why: str) -> None:
        self._publisher.whole(self._arena.champion, self._event_ms, why)

    def _checkpoint(self) -> None:
        """Positions and everything that they led to, in one bundle; then a whole model for workers that start."""
        if self._arena.champion.unsent:
            self._publish_refresh()
        files, arena = self._arena.state()
        self._step += 1
        meta = {
            "arena": arena,
            "positions": self._reader.positions,
            "event_ms": self._event_ms,
            "schema": self._task.schema.hash,
            "updates": self._publisher.state(),
        }
        try:
            checkpoint.save(self._blobs, self._prefix, self._step, files, meta)
            checkpoint.prune(self._blobs, self._prefix, _KEEP)
            self._publisher.keep_head(self._arena.champion, self._event_ms)
        except OSError as error:
            # A full disk must not stop learning: the log still has everything, only recovery takes longer.
            log.error("cannot store a checkpoint: %s; free some space in %s", error, self._blobs.url)
            self._metrics.count("snapshots_failed_total")

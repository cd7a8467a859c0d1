"""The learn role: reads `labelled`, trains, watches for drift, publishes refreshes and swaps.

The learner is a log reader with hand-assigned partitions; its positions live in its own checkpoint, next to the weights
they led to, so every example is learned from exactly once in the history that survives. One round:

1. poll labelled rows; cut them into batches of the model's batch size;
2. every arm scores a batch before any arm learns it (`learners.arena`); what comes of it goes to its topics;
3. a promotion publishes the new champion whole (a swap);
4. about every second, the rows and layers that changed go out (a refresh);
5. about every ten seconds, a checkpoint: everything the arena holds and the positions, manifest last; and a whole model
   for workers that start (`heads`).
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from kafka import TopicPartition

from infra.blobs import Blobs
from infra.clock import now_ms
from infra.kafka import end_offsets, make_consumer, make_producer, translated
from infra.metrics import Metrics
from infra.settings import Settings
from learners import checkpoint
from learners.arena import Arena, Decision, MetricRow
from learners.batch import Batch
from learners.drift import Alert
from learners.registry import Lineage, Live, Registry
from learners.slot import encode_full, encode_refresh
from streams.heads import Head, Heads
from streams.live import META
from streams.task import Task
from streams.topics import Topics
from streams.wire import Damaged, Labelled, decode_labelled

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_MS = 10_000
POLL_MS = 100
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
        self._task, self._settings, self._topics = task, settings, Topics.of(task)
        self._blobs = Blobs(settings.blobs)
        self._prefix = f"learner/{task.name}"
        self._registry = Registry(self._blobs, f"models/{task.name}/registry")
        self._heads = Heads(self._blobs, task.name)
        self._freeze_at_ms = freeze_at_ms
        self._arena = self._new_arena()
        self._positions = dict.fromkeys(range(settings.partitions), 0)
        self._step = 0
        self._event_ms = 0
        self._encode = msgspec.json.Encoder().encode
        self._producer = make_producer(settings.kafka)
        self._consumer = make_consumer(settings.kafka, max_poll_records=64)
        self._update_offset = -1  # of the newest update that is known to be in the topic ...
        self._numbers: dict[str, int] = {}  # ... and the newest refresh number of each lineage up to there
        self._metrics = Metrics()
        self._psi: dict[str, float] = {}
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
            self._hear_of_updates()
            self._assign()
            self._publish_whole("the learner started")
            start = now_ms()
            refresh, keep = (
                _Clock(self._task.serving.refresh_every_ms, start),
                _Clock(CHECKPOINT_EVERY_MS, start),
            )
            while not self._stop:
                for batch in self._poll():  # 1
                    self._handle(self._arena.observe(batch, created_ms=now_ms()))  # 2, 3
                    self._tell_feature_drift()
                now = now_ms()
                if self._arena.champion.unsent and refresh.due(now):
                    self._publish_refresh()  # 4
                if keep.due(now):
                    self._checkpoint()  # 5
            self._checkpoint()
            self._producer.flush()
            self._producer.close()
            self._consumer.close()

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
        self._positions = {int(p): offset for p, offset in meta["positions"].items()}
        self._event_ms = meta["event_ms"]
        self._update_offset, self._numbers = meta["updates"]["offset"], meta["updates"]["numbers"]
        log.info("continuing %s from checkpoint %d", self._arena.champion.version, self._step)

    def _begin(self, why: str) -> None:
        """Learn with an untrained model, from the oldest labelled record there is."""
        log.warning("learning begins: %s", why)
        self._record_lineage(self._arena.champion.lineage, None, why, 0)

    def _assign(self) -> None:
        places = {p: TopicPartition(self._topics.labelled, p) for p in self._positions}
        self._consumer.assign(list(places.values()))
        for p, place in places.items():
            self._consumer.seek(place, self._positions[p])

    def _poll(self) -> Iterable[Batch]:
        """Labelled rows that are there now, in batches of the model's batch size (the last one smaller)."""
        parts, rows = [], 0
        for place, records in self._consumer.poll(timeout_ms=POLL_MS).items():
            for record in records:
                labelled = self._decoded(record)
                if labelled is not None:
                    parts.append(labelled.batch())
                    rows += len(labelled)
            self._positions[place.partition] = records[-1].offset + 1
        if not rows:
            return []
        whole = Batch.concat(parts)
        self._event_ms = max(self._event_ms, int(whole.event_ms.max()))
        self._metrics.count("trained_total", rows)
        size = self._task.model.batch_size
        return [whole.slice(start, start + size) for start in range(0, rows, size)]

    def _decoded(self, record: Any) -> Labelled | None:
        """The record's rows; None for rows that cannot be learned from: the first is logged, all are counted."""
        try:
            return decode_labelled(record.value, self._task.rows_hash)
        except Damaged as error:
            if "damaged_total" not in self._metrics.snapshot():
                at = f"{record.topic}[{record.partition}]@{record.offset}"
                log.warning("%s is left out: %s (further ones are only counted)", at, error)
            self._metrics.count("damaged_total")
            return None

    def _handle(self, events: Iterable[Alert | Decision | MetricRow]) -> None:
        for event in events:
            if isinstance(event, Alert):
                log.info("alert: %s", event.message)
                self._send(self._topics.drift_alerts, event)
            elif isinstance(event, Decision):
                self._decide(event)
            else:
                self._send(self._topics.metrics, event)

    def _decide(self, decision: Decision) -> None:
        log.info("%s %s: %s", decision.action, decision.lineage, decision.reason)
        self._send(self._topics.audit, decision)
        if decision.action == "start":
            copied = decision.evidence["kind"] == "warm"
            parent = self._arena.champion.version if copied else None
            self._record_lineage(decision.lineage, parent, decision.reason, decision.event_ms)
        if decision.action == "promote":
            self._publish_whole(decision.reason)

    def _send(self, topic: str, event: Alert | Decision | MetricRow) -> None:
        """JSON as docs/schemas.md says: times of the stream end in _time, times of the clock in _at."""
        names = {"since_ms": "since_time", "event_ms": "event_time", "created_ms": "created_at"}
        record = {names.get(name, name): value for name, value in asdict(event).items()}
        record = {"task": self._task.name, "created_at": now_ms()} | record
        self._producer.send(topic, value=self._encode(record), key=self._task.name.encode())

    def _tell_feature_drift(self) -> None:
        """Send how far each column has moved, whenever a new window was compared."""
        psi = self._arena.psi()
        if psi == self._psi:
            return
        self._psi = psi
        times = {"event_time": self._event_ms, "created_at": now_ms()}
        value = self._encode({"task": self._task.name, **times, "psi": psi})
        self._producer.send(self._topics.feature_drift, value=value, key=self._task.name.encode())

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
        meta, payload = encode_refresh(self._arena.champion, event_ms=self._event_ms, created_ms=now_ms())
        self._publish(meta, payload)
        self._metrics.count("refreshes_total")

    def _publish_whole(self, why: str) -> None:
        """Publish the champion whole under a number that no worker has seen, make it the head, note it as live."""
        champion = self._arena.champion
        champion.advance(self._numbers.get(champion.lineage, 0))
        meta, payload = encode_full(champion, event_ms=self._event_ms, created_ms=now_ms())
        offset = self._publish(meta, payload)
        path = self._heads.put(Head(meta, payload, offset + 1))
        live = self._registry.live()
        if live is None or live.lineage != champion.lineage:
            self._registry.set_live(
                Live(champion.lineage, meta["version"], now_ms(), self._event_ms, path, why)
            )

    def _publish(self, meta: dict[str, Any], payload: bytes) -> int:
        """Send an update; its offset in the topic."""
        headers = [(META, json.dumps(meta).encode())]
        sent = self._producer.send(self._topics.model_updates, value=payload, headers=headers, partition=0)
        self._update_offset = int(sent.get(timeout=30).offset)
        self._numbers[meta["lineage"]] = meta["refresh"]
        return self._update_offset

    def _hear_of_updates(self) -> None:
        """Note the refresh numbers that a former life of this learner used since the checkpoint it left."""
        topic = self._topics.model_updates
        end = end_offsets(self._settings.kafka, topic)[0]
        reader = make_consumer(self._settings.kafka)
        try:
            place = TopicPartition(topic, 0)
            reader.assign([place])
            oldest = reader.beginning_offsets([place])[place]
            reader.seek(place, max(oldest, self._update_offset + 1))
            while reader.position(place) < end:
                for records in reader.poll(timeout_ms=200).values():
                    for record in records:
                        meta = json.loads(dict(record.headers)[META])
                        self._numbers[meta["lineage"]] = meta["refresh"]
        finally:
            reader.close()

    def _checkpoint(self) -> None:
        """Positions and everything that they led to, in one bundle; then a whole model for workers that start."""
        if self._arena.champion.unsent:
            self._publish_refresh()
        files, arena = self._arena.state()
        self._step += 1
        meta = {
            "arena": arena,
            "positions": self._positions,
            "event_ms": self._event_ms,
            "schema": self._task.schema.hash,
            "updates": {"offset": self._update_offset, "numbers": self._numbers},
        }
        try:
            checkpoint.save(self._blobs, self._prefix, self._step, files, meta)
            checkpoint.prune(self._blobs, self._prefix, _KEEP)
            meta_whole, payload = encode_full(
                self._arena.champion, event_ms=self._event_ms, created_ms=now_ms()
            )
            self._heads.put(Head(meta_whole, payload, self._update_offset + 1))
        except OSError as error:
            # A full disk must not stop learning: the log still has everything, only recovery takes longer.
            log.error("cannot store a checkpoint: %s; free some space in %s", error, self._blobs.url)
            self._metrics.count("snapshots_failed_total")

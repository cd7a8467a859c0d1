"""The learn role: reads `labelled`, trains, watches for drift, publishes refreshes and swaps.

The learner is a log reader with hand-assigned partitions, and keeps a log of its own, the training ledger. Its
positions live in its checkpoint, next to the weights they led to. One round:

1. the next steps, cut from what is there (`streams.labelled`), and a line in the ledger that says what they are
   (`learners.ledger`), on the disk before the first of them is taken;
2. each step: every arm scores a batch before any arm learns it (`learners.arena`); what comes of it goes to its topics
   (`streams.announce`);
3. a promotion or a rollback publishes the new champion whole, a swap (`streams.publishing`); between the steps it is
   looked at what the workers report and what people ask for (`streams.steering`), which may end in one as well;
4. what was served since is looked at, without labels; an alarm has its line in the ledger (`streams.watching`);
5. about every second, the rows and layers that changed go out, a refresh, with a line in the ledger too; and Kafka is
   told how far the learner is, so that its lag can be seen with Kafka's own tools;
6. about every ten seconds, sooner when there is much to learn and later where storing takes long, a checkpoint:
   everything the arena holds, the positions and the place in the ledger, manifest last; and a whole model for workers
   that start (`heads`).

After a crash the newest checkpoint is loaded and the lines after it are followed: the same steps, the same versions at
the same places, so the weights are those of a learner that was never disturbed, bit for bit.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from infra.clock import now_ms, ticks_ms
from infra.disk import usable
from infra.kafka import translated
from infra.settings import Settings, load_model_key
from learners import checkpoint
from learners.arena import Decision
from learners.challenger import Now
from learners.checkpoint import Checkpoint
from learners.costs import Costs
from learners.cuts import RowsGone, Step
from learners.entries import Line, OneStep, Position, Steered, Steps, Version, Void, Warned, in_order
from learners.entries import Settings as NewSettings
from learners.ledger import NO_CHAIN, BrokenLedger, Ledger
from learners.parallel import ranks
from learners.recipe import Recipe
from learners.registry import Registry
from learners.slot import BadUpdate
from learners.trainer import warm_up
from streams.alerts import keep_evidence
from streams.announce import Announcer
from streams.control import Control
from streams.crew import Load, Use, Wait
from streams.heads import Heads
from streams.kept import Kept, recipe_of, tidy
from streams.labelled import KafkaLog, LabelledLog, LabelledReader
from streams.outlet import KafkaOutlet, Outlet
from streams.publishing import Publisher
from streams.steering import Steering
from streams.task import Task
from streams.topics import Topics
from streams.training import Training
from streams.watching import ServedWatch

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_MS = 10_000
STEER_EVERY_MS = 50
CHECKPOINT_WORK_MS = 3_000  # learning since a checkpoint is repeated after a crash: not much more than this
CHECKPOINT_SHARE = 4  # of the time, one part in so many: a checkpoint of a large model takes seconds
MOST_STEPS = 64  # of a round: a refresh, a checkpoint and a request to stop wait for its end


def connect(task: Task, settings: Settings) -> tuple[LabelledLog, Outlet, Control, LabelledLog]:
    """The learner's way in and out by Kafka, what steers it, and what is served."""
    topics = Topics.of(task)
    source, served = (
        KafkaLog(settings.kafka, topic, settings.partitions) for topic in (topics.labelled, topics.examples)
    )
    outlet = KafkaOutlet(settings.kafka, topics.model_updates, topics.group("learn"))
    return source, outlet, Control(settings.kafka, topics), served


class Learner:
    """One learner of one task. `freeze_at_ms` keeps a copy of the champion as it was at that event time, to compare."""

    def __init__(
        self,
        task: Task,
        settings: Settings,
        source: LabelledLog,
        outlet: Outlet,
        control: Control | None = None,
        served: LabelledLog | None = None,
        *,
        freeze_at_ms: int | None = None,
        checkpoint_every_ms: int = CHECKPOINT_EVERY_MS,
    ) -> None:
        self._task, self._settings, self._source, self._outlet = task, settings, source, outlet
        self._topics, self._every_ms = Topics.of(task), checkpoint_every_ms
        self._kept = Kept.of(settings, task.name)
        store = self._kept.store
        self._ledger = Ledger(self._kept.ledger_path, store, self._kept.ledger)
        registry = Registry(store, f"models/{task.name}/registry")
        heads, key = Heads(store, task.name), load_model_key(settings.model_key)
        publisher = Publisher(outlet, self._ledger, heads, registry, key)
        self._control = control
        costs = Costs(task.schema, task.drift.max_scoring_ratio)
        self._steering = Steering(task.guard, costs, control, heads, registry) if control else None
        self._repeated: set[str] = set()  # commands that a former life did: they come once more
        self._steer_due_ms = 0  # ticks, as all that the learner waits for
        self._wanted = recipe_of(task, freeze_at_ms)
        self.training = Training(
            self._wanted, self._ledger, publisher, Announcer(task, outlet, store), registry
        )
        self._reader = LabelledReader(source, task.model.batch_size, task.rows_hash, self.training.metrics)
        self._served = served
        metrics = self.training.metrics
        self._watch = ServedWatch(task, served, metrics, publisher.learned) if served else None
        self._publisher = publisher
        self._saved = 0  # checkpoints
        self._worked_ms = 0  # learning since the newest one
        self._voided = False  # whether this life has given up steps that the ledger has
        self._stop = False

    def stop(self) -> None:
        """Ask `run` to end after its current round; safe in a signal handler."""
        self._stop = True

    def run(self) -> None:
        """Learn until stopped; the last thing is a checkpoint. Raises UserError when Kafka or the disk is lost."""
        place = usable(self._kept.ledger_path, "name another folder with DRIFTLINE_DATA")
        with translated(self._settings.kafka), place:
            warm_up(self._task.schema, *self._task.trained)
            self.start()
            if self._control is not None:
                self._control.start()
            if self._voided:  # else a next life would give up at the same step, with all that comes now
                self._checkpoint()
            refreshed = saved = ticks_ms()
            took = 0  # by the newest checkpoint
            while not self._stop:
                self._learn(self._reader.steps(MOST_STEPS))  # 1, 2, 3
                self._steer()
                self._look()  # 4
                now = ticks_ms()
                if now - refreshed >= self._task.serving.refresh_every_ms:
                    self.training.refresh()  # 5
                    self._tell_place()
                    refreshed = now
                due = now - saved >= self._every_ms or self._worked_ms >= CHECKPOINT_WORK_MS
                if due and now - saved >= CHECKPOINT_SHARE * took:
                    self._checkpoint()  # 6
                    saved, took = now, ticks_ms() - now
            self._checkpoint()
            self._tell_place()
            ranks().tell(None)
            self._outlet.close()
            self._source.close()
            if self._served is not None:
                self._served.close()
            self._ledger.close()
            if self._control is not None:
                self._control.close()

    def start(self) -> None:
        """Become what the former life was when it ended, or begin."""
        began, training = ticks_ms(), self.training
        training.positions = dict.fromkeys(range(self._settings.partitions), (0, 0))
        self._repeat(self._load())
        repeated = training.step
        if not training.begun:
            self._begin("the first model")
        elif training.recipe.schema != self._wanted.schema:
            self._begin(f"the features of {self._task.name} changed")
        elif training.recipe != self._wanted:
            training.change(self._wanted)
        if self._watch is not None:
            self._watch.start()
        training.settle()
        took = (ticks_ms() - began) / 1000
        log.info("ready with %s at step %d after %.1f s", training.arena.champion.version, repeated, took)

    def _load(self) -> list[Line]:
        """Take over the newest good checkpoint; the lines of the ledger after it."""
        found = checkpoint.load_newest(self._kept.store, self._kept.checkpoints)
        for reason in found.skipped:
            log.warning("checkpoint skipped: %s", reason)
        lines = self._lines(found.checkpoint)
        self._publisher.hear()
        return lines

    def _lines(self, found: Checkpoint | None) -> list[Line]:
        n, chain = 0, NO_CHAIN
        if found is not None:
            self._saved = found.step
            ranks().tell(Load(found.step))
            try:
                self.training.load(found.files, found.meta)
                if self._watch is not None and "served" in found.meta:
                    self._watch.load(found.files, found.meta["served"])
                n, chain = found.meta["ledger"]["n"], found.meta["ledger"]["chain"]
                if self._control is not None:
                    self._control.position = found.meta.get("commands")
            except (KeyError, ValueError, TypeError) as error:
                log.warning("checkpoint %d is of another version of Driftline (%r)", found.step, error)
                ranks().tell(Use(self.training.recipe.to_dict(), fresh=True))
                return []
        try:
            return list(self._ledger.lines(n, chain))
        except BrokenLedger as error:
            log.error("the training ledger does not go on from checkpoint %d: %s", self._saved, error)
            if n:
                self._ledger.restart(n, chain)
            return []

    def _repeat(self, lines: Sequence[Line]) -> None:
        """Do again what the ledger says was done, as far as the log still has the rows."""
        training, reader = self.training, self._reader
        reader.start(training.positions)
        training.published = {line.entry.step for line in lines if isinstance(line.entry, Version)}
        try:
            for each in in_order(lines, training.step):
                match each:
                    case NewSettings():
                        recipe = Recipe.from_dict(each.settings)
                        training.use(recipe, fresh=each.fresh, positions=each.positions)
                        reader.start(training.positions)
                    case OneStep():
                        training.learn(reader.again(each), each.runs)
                    case Steered():
                        training.steer(each)
                        self._repeated.add(each.facts.get("command_id", ""))
                    case Warned():
                        training.warned(each.alert)
                        if self._watch is not None:
                            self._watch.alarmed(each.positions, each.seen)
                    case Version():
                        if not training.publish_again(each):
                            log.error("%s is not what it was when it was published", each.version)
        except (RowsGone, BadUpdate, KeyError, ValueError) as error:
            why = f"steps after {training.step} cannot be repeated: {error}"
            log.error("%s", why)
            self._ledger.append(Void(training.step, why), now_ms())
            self._voided = True
            reader.start(training.positions)
        training.published = set()
        for line in lines:
            if isinstance(line.entry, NewSettings) and line.entry.fresh:
                training.begun = {"n": line.n, "positions": line.entry.positions}

    def _begin(self, why: str) -> None:
        """Learn with an untrained model, from the oldest labelled record there is."""
        log.warning("learning begins: %s", why)
        positions: dict[int, Position] = {p: (offset, 0) for p, offset in self._source.oldest().items()}
        self.training.begin(self._wanted, positions, why)
        self._reader.start(positions)

    def _learn(self, steps: Sequence[Step]) -> None:
        """Write down these steps, then take them."""
        self.training.metrics.note("lag_records", self._reader.behind, of=self._topics.labelled)
        if not steps:
            ranks().tell(Wait())
            return
        began, training = ticks_ms(), self.training
        times = [step.batch.event_ms for step in steps]
        entry = Steps(
            training.step + 1,
            tuple(step.runs for step in steps),
            tuple(len(step.batch) for step in steps),
            (int(min(each.min() for each in times)), int(max(each.max() for each in times))),
            training.recipe.seed,
            training.recipe.hash,
        )
        self._ledger.append(entry, now_ms())
        for step in steps:
            training.learn(step.batch, step.runs)
            self._steer()
        training.positions = self._reader.positions  # also past records without rows
        self._worked_ms += ticks_ms() - began

    def _steer(self) -> None:
        """Follow the workers and the commands; what changes a model is written down before it is done."""
        if self._steering is None:
            return
        training, ticks = self.training, ticks_ms()
        untimed = self._steering.costs.due(training.arena.challengers)  # before their first verdict
        if ticks < self._steer_due_ms and not untimed:
            return
        self._steer_due_ms = ticks + STEER_EVERY_MS
        now = Now(training.event_ms, now_ms())
        for each in self._steering.turn(training.arena, training.step, now, self._repeated):
            if isinstance(each, Decision):
                training.tell(each)
            else:
                self._ledger.append(each, now.created_ms)
                training.steer(each)

    def _look(self) -> None:
        """See whether what is served moved; that is written down before it is told."""
        if (watch := self._watch) is None:
            return
        alert = watch.turn()
        self.training.metrics.note("lag_records", watch.behind, of=self._topics.examples)
        if alert is not None:
            step, positions = self.training.step, dict(watch.positions)
            keep_evidence(self._kept.store, self._task.name, alert)
            alert = replace(alert, details={})
            self._ledger.append(Warned(step, alert, positions, watch.seen), now_ms())
            self.training.warned(alert)
        self.training.tell_feature_drift(watch.psi(), watch.event_ms)

    def _tell_place(self) -> None:
        places = {self._topics.labelled: {p: offset for p, (offset, _) in self.training.positions.items()}}
        if self._watch is not None:
            places[self._topics.examples] = self._watch.positions
        self._outlet.reached(places)

    def _checkpoint(self) -> None:
        """Everything that the log led to, in one bundle; then a whole model for workers that start."""
        self.training.refresh()
        self._saved += 1
        self._worked_ms = 0
        store, prefix = self._kept.store, self._kept.checkpoints
        try:
            self._ledger.seal()
            files, meta = self.training.state()
            if self._control is not None:
                meta["commands"] = self._control.position
            if self._watch is not None:
                watched, meta["served"] = self._watch.state()
                files |= watched
            checkpoint.save(store, prefix, self._saved, files, meta | {"created_ms": now_ms()})
            self.training.metrics.count("snapshots_total")
            self._ledger.prune(tidy(self._kept, self._source.oldest()))
            self.training.keep_head()
        except OSError as error:
            # A full disk must not stop learning: the log still has everything, only recovery takes longer.
            log.error("cannot store a checkpoint: %s; free some space in %s", error, store.url)
            self.training.metrics.count("snapshots_failed_total")

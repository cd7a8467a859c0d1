"""Poisoned challengers against a real learner and worker, and how long a rollback takes."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from benchmarks._broker import START_S, Bench
from benchmarks._common import table
from infra.clock import now_ms
from infra.kafka import make_producer, read_all
from learners.batch import Batch, Schema
from learners.challenger import Challenger
from learners.slot import encode_full
from learners.trainer import Trainer
from learners.verdict import PairedTest
from streams.ask import ask
from streams.control import Command, Control
from streams.fleet import Report
from streams.learn import Learner, connect
from streams.outlet import Outlet
from streams.rows import Labelled
from streams.task import Task
from streams.topics import Topics
from streams.wire import encode_labelled
from tests.learner_log import labelled

BATCH = 64
PAUSE_S = 0.1  # between two batches of labelled rows

Spoil = Callable[[Trainer, Batch], object]


class Saboteur(Control):
    """Puts challengers on trial between two steps, and promotes each at once as a person would."""

    learner: Learner

    def __init__(self, kafka: str, topics: Topics) -> None:
        super().__init__(kafka, topics)
        self.waiting: queue.Queue[tuple[str, Spoil]] = queue.Queue()
        self.lineages: dict[str, str] = {}

    def poll(self) -> Iterator[Report | Command]:
        """See Control."""
        while not self.waiting.empty():
            name, spoil = self.waiting.get()
            arena = self.learner.training.arena
            still = replace(arena.champion.config, learning_rate=1e-9)
            made = arena.champion.clone(arena.born(still, arena.champion.seed), still)
            self.learner.training._born[made.lineage] = self.learner.training.step
            self.learner.training._record_lineage(made.lineage, arena.champion.version, name, 0)
            spoil(made, ROWS)
            arena.trials.challengers = [Challenger(made, "warm", name, PairedTest(0.005, 0.001))]
            self.lineages[name] = made.lineage
            yield Command(name, "promote", made.lineage, arena.champion.lineage, name, now_ms())
        yield from super().poll()


def nan(trainer: Trainer, _: Batch) -> None:
    """NaN weights."""
    next(trainer.model.parameters()).data.view(-1)[0] = torch.nan


def constant(trainer: Trainer, _: Batch) -> None:
    """The same score for everything."""
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    trainer.model.table.zero_()
    trainer.touched.fill_(True)


def huge(trainer: Trainer, _: Batch) -> None:
    """One row of the table is huge."""
    trainer.model.table[int(trainer.touched.nonzero()[0, 0])] = 1e9


def inverted(trainer: Trainer, rows: Batch) -> None:
    """Learned that every label is the other one."""
    learned = Trainer(trainer.schema, replace(trainer.config, learning_rate=0.01), trainer.seed, "L0", "cpu")
    learned.train(replace(rows, label=1.0 - rows.label))
    for name, value in trainer.model.state_dict().items():
        value.copy_(learned.model.state_dict()[name])
    trainer.touched |= learned.touched


def sound(trainer: Trainer, _: Batch) -> None:
    """Nothing is wrong with it."""


ROWS: Batch
POISONS: Mapping[str, Spoil] = {
    "NaN weights": nan, "constant score": constant, "one huge row": huge, "inverted labels": inverted,
}  # fmt: skip


def poison(bench: Bench, task: Task, rounds: int) -> Mapping[str, float]:
    """Try every poison, roll back by hand, print what stopped what; the figures."""
    global ROWS
    ROWS = labelled(task, 4_000, 1, turn=1.0).batch()
    topics, settings = Topics.of(task), bench.settings
    source, outlet, *_ = connect(task, settings)
    control = Saboteur(bench.kafka, topics)
    control.learner = Learner(task, settings, source, outlet, control)
    thread = threading.Thread(target=control.learner.run)
    thread.start()
    passed, times, rows = 0, dict[str, list[float]](), list[list[str | float]]()
    try:
        with bench.serve(task) as worker, _labels(bench, task):
            seen = Seen(bench, topics)
            bench.until(lambda: seen.serves("L1"), worker, "serve the first model")
            time.sleep(5.0)
            for _ in range(rounds):
                for name, spoil in POISONS.items():
                    control.waiting.put((name, spoil))
                    took = seen.rolled_back(control, name)
                    passed += took is None
                    times.setdefault(name, []).append(START_S if took is None else took)
                control.waiting.put(("by hand", sound))
                bench.until(lambda: "by hand" in control.lineages, worker, "try a challenger")
                bench.until(lambda: seen.serves(control.lineages["by hand"]), worker, "serve it")
                asked = now_ms()
                ask(task, settings, "rollback", "", "a drill")
                at = seen.first("L1", asked)
                times.setdefault("by hand", []).append(START_S if at is None else (at - asked) / 1000)
                del control.lineages["by hand"]
            rows = [
                [name, "guard or worker" if name in POISONS else "a person", len(t), max(t)]
                for name, t in times.items()
            ]
            for name, step in _on_the_topic(outlet, task):
                stopped = seen.refused(name, step)
                passed += not stopped
                rows.append([name, step if stopped else "nothing", 1, 0.0])
    finally:
        control.learner.stop()
        thread.join()
    print(table(["what", "stopped by", "times", "slowest rollback s"], rows))
    longest = max(max(found) for found in times.values())
    print(f"\n{passed} got past; slowest rollback {longest:.2f} s from the decision to the worker's report")
    return {"rollback_s_max": longest, "poisoned_passed": passed}


@contextmanager
def _labels(bench: Bench, task: Task) -> Iterator[None]:
    """Labelled rows come as long as the body runs."""
    stop, topic = threading.Event(), Topics.of(task).labelled

    def send() -> None:
        with make_producer(bench.kafka) as producer:
            number = 0
            while not stop.wait(PAUSE_S):
                number += 1
                rows: Labelled = labelled(task, BATCH, 1_000 + number, turn=1.0)
                producer.send(topic, encode_labelled(rows), partition=number % bench.partitions)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _on_the_topic(outlet: Outlet, task: Task) -> Iterator[tuple[str, str]]:
    """Poisons that somebody puts on the topic: lineage and the check that must stop it."""
    other = Schema(task.schema.numbers, task.schema.categories, "of another task", task.schema.blocks)
    wide = replace(task.model, family="mlp", hidden=(3072, 3072))
    for lineage, schema, config, step in (
        ("L901", task.schema, task.model, "bytes"),
        ("L902", other, task.model, "schema"),
        ("L903", task.schema, wide, "latency"),
    ):
        meta, payload = encode_full(
            Trainer(schema, config, 1, lineage, "cpu"), event_ms=0, created_ms=now_ms()
        )
        outlet.publish(meta, payload[:-1] if step == "bytes" else payload)
        yield lineage, step


class Seen:
    """What the worker reports and what the learner decides."""

    def __init__(self, bench: Bench, topics: Topics) -> None:
        self._bench, self._topics = bench, topics

    def _all(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(record.value or b"{}") for record in read_all(self._bench.kafka, topic)]

    def since(self, lineage: str, after_ms: int) -> int:
        """When the worker first said that it serves the lineage, after a moment; 0 if it has not."""
        for report in self._all(self._topics.workers):
            if report["created_at"] >= after_ms and report["version"].startswith(f"{lineage}."):
                return int(report["created_at"])
        return 0

    def serves(self, lineage: str, after_ms: int = 0) -> bool:
        """Whether it has said so."""
        return self.since(lineage, after_ms) > 0

    def first(self, lineage: str, after_ms: int) -> int | None:
        """As `since`, and waits for it; None if it never came."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if at := self.since(lineage, after_ms):
                return at
            time.sleep(0.2)
        return None

    def rolled_back(self, control: Saboteur, name: str) -> float | None:
        """Seconds from the decision that takes a challenger back to the worker's report; None if it never came."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            lineage = control.lineages.get(name)
            for row in self._all(self._topics.audit) if lineage else []:
                if row["action"] == "rollback" and row["champion"] == lineage:
                    at = self.since(row["lineage"], row["created_at"])
                    if at:
                        del control.lineages[name]
                        return float(at - row["created_at"]) / 1000
            time.sleep(0.2)
        return None

    def refused(self, lineage: str, step: str) -> bool:
        """Whether a worker refuses the lineage at that check, and never serves it."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for row in self._all(self._topics.audit):
                if row["action"] == "refuse" and row["lineage"] == lineage:
                    return bool(row["evidence"]["step"] == step) and not self.serves(lineage)
            time.sleep(0.2)
        return False

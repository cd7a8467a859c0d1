"""The measurement behind freshness.py: labels at a steady rate through the real roles, and backtests by interval."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks._broker import Bench
from benchmarks._refreshes import Refreshes
from infra.errors import UserError
from infra.kafka import create_topics, make_producer, read_all
from learners.batch import Batch, ModelConfig, Schema
from learners.slot import encode_full, encode_refresh
from learners.trainer import Trainer
from streams.backtest import OPEN_KEY, Options, make_settings
from streams.backtest_engine import Backtest
from streams.prepare import prepare
from streams.privacy import Pseudonymiser
from streams.simulate import parse_change, simulate
from streams.task import Task, load_task
from streams.topics import Topics

PROBES = 40  # events a second that are scored meanwhile
STEP_S = 0.01  # labels are sent in portions of so much time
WARM_UP_S = 1.0  # of labels that are not counted, since the roles still load what they need
SETTLE_S, PATIENCE_S = 2.0, 60.0  # what is scored after the last label was learned; how long that may take


@dataclass
class Found:
    """`seconds` [labels] from sending a label to the first score that knows it; bytes of the refreshes; how many rungs
    of a population were decided.
    """

    seconds: NDArray[np.float64]
    refresh_bytes: list[int]
    rungs: int


@dataclass
class _Sent:
    """Event time of labels, ascending, and when each was sent, in ms."""

    event_ms: list[int] = field(default_factory=list)
    at_ms: list[float] = field(default_factory=list)


def run(bench: Bench, rate: int, seconds: float, refresh_every: str, budget: float = 0.0) -> Found:
    """Measure on a bench with one partition, with a population of eight beside the champion if it has a `budget`.

    Raises UserError when the roles do not keep up.
    """
    task = _task(bench, refresh_every, budget)
    warm = round(rate * WARM_UP_S)
    labels, probes = warm + round(rate * seconds), round(PROBES * (seconds + 2 * (SETTLE_S + PATIENCE_S)))
    items = [
        item for item in simulate("clicks", seed=1, events=labels + probes).items() if item.kind == "event"
    ]
    events = [item for item in items if isinstance(item.value, dict)]
    with ExitStack() as stack:
        bench.register([task])
        workers = {
            name: stack.enter_context(bench.worker(f"{task.name}-{name}", _command(name, task)))
            for name in ("serve", "join", "learn")
        }
        for name in ("serve", "join"):
            bench.await_group(f"driftline-{task.name}-{name}", workers[name])
        topics, encode = Topics.of(task), msgspec.json.encode
        producer = make_producer(bench.kafka)
        stack.callback(producer.close)
        for item in events[:labels]:
            producer.send(topics.events, key=item.key.encode(), value=encode(item.value))
        producer.flush()
        bench.until(lambda: bench.count(topics.predictions) >= labels, workers["serve"], "score", 300.0)
        updates = stack.enter_context(Refreshes(bench.kafka, topics.model_updates))
        rest = iter(events[labels:])
        _, metas = _drive(producer, topics, events[:warm], rest, rate, updates)
        sent, more = _drive(producer, topics, events[warm:labels], rest, rate, updates)
        workers["learn"].check()
        time.sleep(1.0)
        rows = [
            msgspec.json.decode(record.value or b"{}") for record in read_all(bench.kafka, topics.predictions)
        ]
    audit = [msgspec.json.decode(record.value or b"{}") for record in read_all(bench.kafka, topics.audit)]
    rungs = sum(row["action"] == "tune" for row in audit)
    if budget and not rungs:
        raise UserError(
            "no rung of the population ended: nothing was compared",
            "measure more --seconds, or a larger --tuning",
        )
    return _found(sent, metas + more, rows, rungs)


def backtest(events: int, refresh: str) -> dict[str, float]:
    """Metrics of the continuous policy on simulated clicks with a drift in the middle, refreshed so often."""
    task = load_task("clicks")
    change = parse_change("sudden@0.5")
    source = simulate("clicks", seed=1, events=events, changes=[change])
    settings = make_settings(task, source, Options(refresh="" if refresh == "0s" else refresh))
    run = Backtest(task, Pseudonymiser(OPEN_KEY), ["continuous"], source.events, settings)
    run.run(source.items())
    return run.metrics(run.lanes[0])


def update_bytes(rows: int, every: int) -> tuple[float, int]:
    """Mean bytes of a refresh after `every` rows, and bytes of the whole model, once `rows` were learned.

    A DeepFM of 8 categories of 16 numbers whose values follow Zipf's law (exponent 1.2, 50,000 values at most).
    """
    random, schema = np.random.default_rng(1), Schema(("n",), tuple(f"c{i}" for i in range(8)), "benchmark")
    config = ModelConfig(family="deepfm", embedding=16, rows=65_536, batch_size=256)
    trainer, sizes = Trainer(schema, config, 1, "L1", "cpu"), []
    for start in range(0, rows + 20 * every, every):
        values = random.zipf(1.2, (every, 8)) % 50_000 + 1
        label, times = (random.random(every) < 0.1).astype(np.float32), np.arange(every, dtype=np.int64)
        number = random.normal(size=(every, 1)).astype(np.float32)
        trainer.train(Batch([""] * every, times, times, number, values, label * 0.0, label))
        payload = encode_refresh(trainer, event_ms=0, created_ms=0)[1]
        sizes += [len(payload)] if start >= rows else []
    return float(np.mean(sizes)), len(encode_full(trainer, event_ms=0, created_ms=0)[1])


def _command(role: str, task: Task) -> list[str]:
    return [sys.executable, "-m", "streams.cli", role, "--task", str(task.path)]


def _task(bench: Bench, refresh_every: str, budget: float) -> Task:
    name = "tuned" if budget else "fresh"
    text = load_task("clicks").text.replace('name = "clicks"', f'name = "{name}"')
    text = text.replace("missing = 0", 'missing = "drop"')
    text = text.replace('window = "10m"', 'window = "3650d"')  # a label counts whenever it comes
    text += f'\n[serving]\nrefresh_every = "{refresh_every}"\n'
    text += f"\n[tuning]\nbudget = {budget}\nevents = 100\n" if budget else ""
    path = bench.home / f"{name}.toml"
    path.write_text(text)
    task = load_task(str(path))
    create_topics(bench.kafka, {Topics.of(task).events: (1, {})})
    prepare(task, bench.settings)
    return task


def _drive(
    producer: Any, topics: Topics, labelled: list[Any], probes: Iterator[Any], rate: int, updates: Refreshes
) -> tuple[_Sent, list[dict[str, Any]]]:
    """Send labels at the rate and probes beside them, until all labels were learned and a little longer.

    Returns what was sent and the metas of all updates. Raises UserError when learning takes too long.
    """
    sent, metas, portion = _Sent(), list[dict[str, Any]](), max(1, round(rate * STEP_S))
    encode, begin, at, probed, end = msgspec.json.encode, time.monotonic(), 0, 0, math.inf
    while (now := time.monotonic() - begin) < end:
        for item in islice(probes, max(0, round(now * PROBES) - probed)):
            producer.send(topics.events, key=item.key.encode(), value=encode(item.value))
            probed += 1
        while at < len(labelled) and at <= now * rate:
            for item in labelled[at : at + portion]:
                label = {"event_id": item.value["event_id"], "click": int(item.time_ms % 7 == 0)}
                producer.send(topics.labels, value=encode(label))
                sent.event_ms.append(item.time_ms)
                sent.at_ms.append(time.time() * 1000)
            at += portion
        producer.flush()
        metas += updates.poll(timeout_ms=2)
        if at >= len(labelled) and metas and metas[-1]["event_ms"] >= labelled[-1].time_ms:
            end = min(end, now + SETTLE_S)
        if now > len(labelled) / rate + PATIENCE_S:
            raise UserError("the learner did not keep up with the labels", "lower --rate")
    return sent, metas


def _found(sent: _Sent, metas: list[dict[str, Any]], rows: list[dict[str, Any]], rungs: int) -> Found:
    """Times by version: when a version was first seen in a score, and up to which event it has learned."""
    number = {meta["version"]: i for i, meta in enumerate(metas)}
    used = sorted((row["processed_at"], number[row["version"]]) for row in rows if row["version"] in number)
    times, versions = (
        np.array([at for at, _ in used]),
        np.maximum.accumulate([version for _, version in used]),
    )
    learned = np.maximum.accumulate([meta["event_ms"] for meta in metas])
    first = np.searchsorted(learned, sent.event_ms)  # the first update that learned the label ...
    place = np.searchsorted(versions, first)  # ... and the first score by it or a later one
    if place.max() >= len(times):
        raise UserError("not every label reached a score in time", "lower --rate")
    refreshes = [meta["bytes"] for meta in metas if meta["kind"] == "refresh"]
    return Found((times[place] - np.array(sent.at_ms)) / 1000.0, refreshes, rungs)

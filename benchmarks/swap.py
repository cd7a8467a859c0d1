"""Swaps under load: is any prediction lost, doubled, or made by two versions; what do they cost; what gets past them?

A real `driftline serve` worker reads events at a steady rate. In turns it is left alone, sent whole models of ever new
lineages as often as a learner can send some, and sent ten times as many. Afterwards every prediction is computed again
by the version that it names. Then poisoned challengers are promoted by a real learner, or put on the topic, and good
ones are rolled back by hand.
"""

import sys
import threading
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks._broker import Bench, Worker
    from learners.trainer import Trainer
    from streams.task import Task

BASES = 4  # models that the lineages repeat in turn
APART = 1e-5  # a score that is further from the recomputed one is of another version
WARM_UP_S = 5.0
TURN_S = 5.0
PACES = {"steady": None, "a swap a second": 1.0, "ten a second": 0.1}
"""Turns, and the seconds between their swaps: a learner sends at most one model in `serving.refresh_every`, 1 s."""
BUDGET_MS = 10.0  # for 64 rows; the model of the task needs about one


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--swaps", type=int, default=0, help="how many; default: 1,000, quick 60")
    made.add_argument("--rate", type=float, default=500.0, help="events a second (default: 500)")
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Run both parts, print their tables, return the figures."""
    import torch

    from benchmarks._broker import Bench
    from benchmarks._swap_poison import poison

    torch.set_num_threads(1)
    swaps = args.swaps or (60 if args.quick else 1_000)
    with scratch() as home, Bench(home, 2) as bench:
        tasks = [
            bench.clicks("clicks-swapped"),
            bench.clicks("clicks-poisoned", guard=f"max_scoring_ms = {BUDGET_MS}"),
        ]
        bench.register(tasks)
        figures = _under_load(bench, tasks[0], swaps, args.rate)
        figures.update(poison(bench, tasks[1], rounds=1 if args.quick else 5))
        return figures


def _under_load(bench: "Bench", task: "Task", swaps: int, rate: float) -> dict[str, float]:
    """Turns of peace and turns of swaps, then every prediction computed again."""
    from streams.outlet import KafkaOutlet
    from streams.topics import Topics

    topics, bases = Topics.of(task), _bases(task)
    outlet = KafkaOutlet(bench.kafka, topics.model_updates, "driftline-swaps")
    # A learner is another process: making updates must not hold up who sends the events here.
    updates = [_whole(bases, number) for number in range(1, swaps + 2)]
    outlet.publish(*updates[0])
    number = 1
    with bench.serve(task) as worker:
        bench.await_group(f"driftline-{task.name}-serve", worker)
        a_round = sum(round(TURN_S / every) for every in PACES.values() if every)
        seconds = WARM_UP_S + len(PACES) * TURN_S * -(-swaps // a_round)
        stop, events = threading.Event(), round(rate * (seconds + 30.0))
        sender = threading.Thread(target=_send, args=(task, bench.kafka, events, rate, stop))
        sender.start()
        time.sleep(WARM_UP_S)
        memory, spans = [_memory(worker)], []
        while number <= swaps:
            for what, every in PACES.items():
                began = time.time()
                if every is None:
                    time.sleep(TURN_S)
                    spans.append((began * 1000.0, _now(), what))
                    continue
                for turn in range(min(round(TURN_S / every), swaps + 1 - number)):
                    outlet.publish(*updates[number])
                    number += 1
                    time.sleep(max(0.0, began + (turn + 1) * every - time.time()))
                spans.append((began * 1000.0, _now(), what))
            memory.append(_memory(worker))
        stop.set()
        sender.join()
        sent = _ids(bench, topics.events)
        bench.until(lambda: bench.count(topics.predictions) >= len(sent), worker, "predict all events")
        time.sleep(2.0)
    outlet.close()
    return _judge(bench, task, bases, sent, spans, memory)


def _bases(task: "Task") -> list["Trainer"]:
    """Models that differ, of the task's family."""
    from learners.trainer import Trainer
    from tests.learner_log import labelled

    made = []
    for seed in range(BASES):
        trainer = Trainer(task.schema, task.model, task.seed, "L1", "cpu")
        trainer.train(labelled(task, 2_000, seed, turn=seed / BASES).batch())
        made.append(trainer)
    return made


def _whole(bases: Sequence["Trainer"], number: int) -> tuple[dict[str, Any], bytes]:
    """Lineage `number` as it is published: meta and payload of a whole model."""
    from learners.slot import encode_full

    base = bases[number % BASES]
    base.lineage, base.refresh = f"L{number}", 1
    return encode_full(base, event_ms=0, created_ms=int(_now()))


def _send(task: "Task", kafka: str, events: int, rate: float, stop: threading.Event) -> None:
    from streams.feed import feed
    from streams.simulate import simulate

    simulation = simulate("clicks", seed=1, events=events)
    only = (item for item in simulation.items() if item.kind == "event")
    feed(only, events, task, kafka, rate=rate, stop=stop)


def _memory(worker: "Worker") -> float:
    """Resident MiB of the worker itself, the largest of the processes under its guard."""
    import psutil

    guard = psutil.Process(worker.process.pid)
    family = [guard, *guard.children(recursive=True)]
    return float(max(process.memory_info().rss for process in family)) / 2**20


def _now() -> float:
    return time.time() * 1000.0


def _ids(bench: "Bench", topic: str) -> set[str]:
    import json

    from infra.kafka import read_all

    return {json.loads(record.value or b"{}")["event_id"] for record in read_all(bench.kafka, topic)}


def _judge(
    bench: "Bench",
    task: "Task",
    bases: Sequence["Trainer"],
    sent: set[str],
    spans: Sequence[tuple[float, float, str]],
    memory: Sequence[float],
) -> dict[str, float]:
    """Counts, latencies and memory, printed and returned."""
    import json

    import numpy as np

    from infra.kafka import read_all
    from streams.topics import Topics

    topics = Topics.of(task)
    found = [json.loads(record.value or b"{}") for record in read_all(bench.kafka, topics.predictions)]
    predicted = {row["event_id"]: (np.float32(row["score"]), row["version"]) for row in found}
    reports = [json.loads(record.value or b"{}") for record in read_all(bench.kafka, topics.workers)]
    taken = {report["version"].partition(".")[0] for report in reports} - {"L1"}  # what it began with
    lost, doubled = len(sent - predicted.keys()), len(found) - len(predicted)
    mixed, checked = _mixed(bench, task, bases, predicted)
    received = np.array([row["received_at"] for row in found])
    took = np.array([row["processed_at"] for row in found]) - received
    p99: dict[str, float] = {}
    rows: list[list[str | float]] = []
    for kind in PACES:
        turns = [took[(a <= received) & (received < b)] for a, b, what in spans if what == kind and b > a]
        p50, p99[kind] = np.median([np.percentile(t, [50, 99]) for t in turns if len(t)], axis=0).tolist()
        rows.append([kind, len(turns), sum(map(len, turns)), p50, p99[kind], p99[kind] / p99["steady"]])
    print(
        f"{len(taken):,} swaps that the worker reports, {len(found):,} predictions, {checked:,} computed again\n"
    )
    print(
        "Of each turn its own p50 and p99, and of these the median: the machine may stand still in one of them\n"
    )
    print(table(["turns", "number", "events", "p50 ms", "p99 ms", "times steady"], rows))
    print(f"\nlost {lost}, doubled {doubled}, mixed {mixed}")
    print(f"worker's memory in MiB after each round: {', '.join(f'{m:.0f}' for m in memory)}\n")
    ratio = {kind: value / max(1.0, p99["steady"]) for kind, value in p99.items()}
    return {
        "swaps": len(taken), "lost": lost, "doubled": doubled, "mixed": mixed,
        "p99_ratio": ratio["a swap a second"], "p99_ratio_ten_a_second": ratio["ten a second"],
        "p99_steady_ms": p99["steady"], "p99_swapping_ms": p99["a swap a second"],
        "memory_ratio": memory[-1] / memory[0],
    }  # fmt: skip


def _mixed(
    bench: "Bench",
    task: "Task",
    bases: Sequence["Trainer"],
    predicted: Mapping[str, tuple["np.float32", str]],
) -> tuple[int, int]:
    """Predictions that their version does not give for the row as it was served, of how many."""
    import numpy as np

    from infra.kafka import read_all
    from streams.topics import Topics
    from streams.wire import EXAMPLES, KIND, decode_examples

    mixed = checked = 0
    for record in read_all(bench.kafka, Topics.of(task).examples):
        if dict(record.headers).get(KIND) != EXAMPLES:
            continue
        rows, served, versions = decode_examples(record.value)
        owner = np.array([int(version[1:].partition(".")[0]) % BASES for version in versions])
        scores: NDArray[np.float32] = np.stack([b.score(rows.numbers, rows.categories) for b in bases])
        wrong = np.abs(scores[owner, np.arange(len(owner))] - served) > APART
        for i, event_id in enumerate(rows.ids):
            wrong[i] |= predicted.get(event_id) != (served[i], versions[i])
        mixed += int(wrong.sum())
        checked += len(wrong)
    return mixed, checked


if __name__ == "__main__":
    main()

"""How many events a second one serve worker takes from the events topic to its predictions, beside two peers.

All read the same events from the same broker, one after the other, one worker process each, and send one prediction
an event. The rate is taken by the broker's clock from the moment when a tenth of the events were read to the moment
when nine tenths were predicted, so starting up does not count.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

if TYPE_CHECKING:
    from benchmarks._broker import Bench, Worker
    from streams.task import Task

EVENTS_TOPIC = "bench.events"
NOTES = """\
Driftline   JSON checked against the task file, keyed pseudonyms, duplicates dropped; sliding windows of user and item
            (the item's by a second, re-keyed topic); scored in batches; predictions and training examples exactly
            once; feature rows to Feast's online store; snapshots of state.
Faust       stock 0.15 agent, an event at a time, at least once: JSON, three tables in memory with their changelog
            topics (tumbling windows of the user), the same torch model row by row, predictions. Its producer
            waits 20 ms for more to send, which makes it faster than stock.
quixstreams 3.28, exactly once: JSON, two stateful tumbling windows of the user and one value in RocksDB with their
            changelog topics, the same torch model row by row, predictions.
Neither peer checks fields, makes pseudonyms, drops duplicates, counts items, keeps examples or feeds Feast: both do
less an event than Driftline, so the ratios are lower bounds."""


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--events", type=int, default=0, help="how many; default: 400,000, quick 60,000")
    made.add_argument("--partitions", type=int, default=4, help="of the events topic (default: 4)")
    made.add_argument(
        "--rounds", type=int, default=0, help="each program so often in turn; default: 3, quick 1"
    )
    made.add_argument(
        "--seconds", type=float, default=0.0, help="a peer is stopped after; default: 20, quick 5"
    )
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Run everything in turn, print the table, return the figures."""
    from benchmarks._broker import Bench
    from benchmarks._peers import quix_python
    from infra.errors import UserError

    events = args.events or (60_000 if args.quick else 400_000)
    rounds = args.rounds or (1 if args.quick else 3)
    seconds = args.seconds or (5.0 if args.quick else 20.0)
    pythons = {"faust": sys.executable}
    try:
        pythons["quixstreams"] = quix_python()
    except UserError as error:
        print(f"quixstreams is left out: {error}\n")
    rates: dict[str, list[float]] = {name: [] for name in ("driftline", *pythons)}
    with scratch() as home, Bench(home, args.partitions) as bench:
        source = bench.clicks("clicks-source", events=EVENTS_TOPIC)
        bench.fill(source, events, seed=1)
        tasks = [bench.clicks(f"clicks-{number}", events=EVENTS_TOPIC) for number in range(rounds)]
        bench.register(tasks)
        for number, task in enumerate(tasks):
            rates["driftline"].append(_driftline(bench, task, events))
            for name, python in pythons.items():
                rates[name].append(_peer(bench, source, name, python, number, events, seconds))
    return _report(rates, events, args.partitions)


def _report(rates: Mapping[str, Sequence[float]], events: int, partitions: int) -> Mapping[str, float]:
    rate = {name: median(found) for name, found in rates.items()}
    ours, rounds = rate["driftline"], len(rates["driftline"])
    rows: list[list[str | float]] = [
        [name, rate[name], min(found), max(found), ours / rate[name]] for name, found in rates.items()
    ]
    print(f"{events:,} impressions in {partitions} partitions, one worker each, {rounds} round(s)\n")
    print(table(["program", "events/s", "least", "most", "driftline is times as fast"], rows))
    print(f"\n{NOTES}")
    figures = {f"ratio_{name}": ours / value for name, value in rate.items() if name != "driftline"}
    return {"events_per_s": ours} | figures


def _driftline(bench: "Bench", task: "Task", events: int) -> float:
    """Events a second of the real serve role, from the first read to the last predicted, without both ends."""
    from streams.topics import Topics

    with bench.serve(task) as worker:
        _await_quiet(bench, worker, Topics.of(task).predictions, events, 600.0)
    return bench.rate(task, events)


def _peer(
    bench: "Bench", source: "Task", name: str, python: str, number: int, events: int, seconds: float
) -> float:
    """Events a second of a peer: it has one step, so the tenth output stands for the tenth event read."""
    from benchmarks._broker import STAMPED, append_times, middle_rate
    from benchmarks._peers import write_plan
    from infra.kafka import create_topics

    full = f"{name}-{number}"
    out, plan = f"{full}.predictions", bench.home / f"{full}.json"
    create_topics(bench.kafka, {out: (bench.partitions, STAMPED)})
    write_plan(
        plan,
        source,
        kafka=bench.kafka,
        group=full,
        events=EVENTS_TOPIC,
        predictions=out,
        partitions=bench.partitions,
    )
    program = {"faust": "faust_agent.py", "quixstreams": "quix_dataframe.py"}[name]
    command = [python, str(Path(__file__).with_name("peers") / program), str(plan)]
    if name == "faust":
        command += ["worker", "--loglevel", "warn"]
    with bench.worker(full, command) as worker:
        _await_quiet(bench, worker, out, events, seconds)
    times = append_times(bench.kafka, out)
    return middle_rate(len(times), int(times[len(times) // 10]), int(times[len(times) * 9 // 10]))


def _await_quiet(bench: "Bench", worker: "Worker", topic: str, wanted: int, seconds: float) -> None:
    """Wait for `wanted` outputs and then silence, or until `seconds` after the first output."""
    bench.until(lambda: bench.count(topic) > 0, worker, "send a prediction")
    deadline, seen = time.monotonic() + seconds, -1
    while time.monotonic() < deadline:
        worker.check()
        count = bench.count(topic)
        if count >= wanted and count == seen:
            return
        seen = count
        time.sleep(0.5)


if __name__ == "__main__":
    main()

"""Seconds from kill -9 of a serve worker to its first new prediction, with a partition of 100,000 known users.

One partition, so one worker has all of it, under a steady stream. Once the features of all users are in a snapshot, the
worker is killed and started again at once, as a supervisor does; several times. The new one reads the snapshot and the
log behind it.
"""

import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

if TYPE_CHECKING:
    from benchmarks._broker import Bench
    from streams.feed import Item
    from streams.task import Task

SNAPSHOT_S = 10.0  # serving.snapshot_every, as it is by default


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument(
        "--users", type=int, default=100_000, help="that the partition knows (default: 100,000)"
    )
    made.add_argument("--kills", type=int, default=0, help="how many; default: 5, quick 1")
    made.add_argument("--rate", type=float, default=300.0, help="events a second (default: 300)")
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Fill the partition, kill the worker again and again, print and return how long it was away."""
    from benchmarks._broker import Bench
    from streams.feed import feed

    kills = args.kills or (1 if args.quick else 5)
    with scratch() as home, Bench(home, 1) as bench:
        task = bench.clicks("clicks-recovery")
        bench.register([task])
        more = int(args.rate * 120.0 * (kills + 1))  # a turn takes less than two minutes
        stream, stop = _impressions(args.users + more, args.users), threading.Event()
        feed(islice(stream, args.users), args.users, task, bench.kafka)
        steadily = {"rate": args.rate, "stop": stop}
        sender = threading.Thread(target=feed, args=(stream, more, task, bench.kafka), kwargs=steadily)
        try:
            seconds = [_one(bench, task, args.users, sender, number) for number in range(kills)]
        finally:
            stop.set()
            if sender.is_alive():
                sender.join()
    rows: list[list[str | float]] = [[f"kill {number}", took] for number, took in enumerate(seconds, 1)]
    print(f"{args.users:,} users in one partition, {args.rate:g} events/s\n")
    print(table(["", "s to the first new prediction"], rows))
    return {"entities": args.users, "kills": kills, "recovery_s_max": max(seconds)}


def _one(bench: "Bench", task: "Task", users: int, sender: threading.Thread, number: int) -> float:
    """Let a worker predict all there is and store a snapshot, kill it, start another; seconds until that predicts."""
    from infra.kafka import read_all
    from streams.topics import Topics

    predictions = Topics.of(task).predictions
    # A name makes it a static member of its group, as under `driftline up`: nobody waits for its session to end.
    named = {"DRIFTLINE_WORKER": "serve-0"}
    with bench.serve(task, f"{number}-first", **named) as first:
        bench.until(lambda: bench.count(predictions) >= users, first, "predict what was there")
        if not sender.is_alive():
            sender.start()
        time.sleep(2.5 * SNAPSHOT_S)  # one more snapshot than needed
        killed_ms = time.time() * 1000.0
        first.process.kill()
    with bench.serve(task, f"{number}-second", **named) as second:

        def new() -> list[int]:
            return [r.timestamp for r in read_all(bench.kafka, predictions) if r.timestamp > killed_ms]

        bench.until(lambda: bool(new()), second, "predict again")
        return (min(new()) - killed_ms) / 1000.0


def _impressions(count: int, users: int) -> "Iterator[Item]":
    """Simulated impressions, each of the next of `users` users, and then of the first again."""
    from streams.simulate import simulate

    found = (item for item in simulate("clicks", seed=1, events=count).items() if item.kind == "event")
    for number, item in enumerate(found):
        assert isinstance(item.value, dict)
        user = f"u-{number % users}"
        yield item._replace(key=user, value=item.value | {"user_id": user})


if __name__ == "__main__":
    main()

"""Milliseconds from sending an event to reading its prediction, under each guarantee, at a steady rate.

Two real serve workers run side by side, one exactly once and one at least once. A producer without linger sends to
them in turn, a few seconds each, and a reader in the same process waits for each prediction (read_committed for
exactly once). The broker stamps what it gets, so that the way can be cut into its parts.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

if TYPE_CHECKING:
    from benchmarks._broker import Bench
    from benchmarks._probe import Lap
    from streams.task import Task

GUARANTEES = ("exactly_once", "at_least_once")
WARM_UP_S = 3.0
CURVE = (10, 100, 500, 1000, 2000, 5000, 10_000, 20_000)  # events/s
PARTS = (
    ("to the events topic", "producer and broker"),
    ("to the score", "fetch, end of the pass before, features of the key and of the item, model"),
    ("to the predictions topic", "encoding, producer and broker"),
    ("to the reader", "end of the transaction, fetch by the reader"),
)


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--rate", type=float, default=500.0, help="events a second (default: 500)")
    made.add_argument("--seconds", type=float, default=0.0, help="of one turn; default: 10, quick 4")
    made.add_argument("--rounds", type=int, default=0, help="turns of each guarantee; default: 5, quick 2")
    made.add_argument("--partitions", type=int, default=4, help="of every topic (default: 4)")
    made.add_argument(
        "--commit-every", default="", metavar="TIME", help='serving.commit_every, such as "5ms"'
    )
    made.add_argument(
        "--curve",
        action="store_true",
        help="one turn of each guarantee at ever higher rates, until it is too much",
    )
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Run both guarantees in turn, print the tables, return the figures."""
    from benchmarks._broker import Bench
    from benchmarks._probe import laps

    seconds = args.seconds or (4.0 if args.quick else 10.0)
    rounds = args.rounds or (2 if args.quick else 5)
    with scratch() as home, Bench(home, args.partitions) as bench:
        lines = f'commit_every = "{args.commit_every}"' if args.commit_every else ""
        tasks = {
            name: bench.clicks(f"clicks-{name.replace('_', '-')}", serving=f'guarantee = "{name}"\n{lines}')
            for name in GUARANTEES
        }
        bench.register(list(tasks.values()))
        with bench.serve(tasks["exactly_once"]) as first, bench.serve(tasks["at_least_once"]) as second:
            for task, worker in zip(tasks.values(), (first, second), strict=True):
                bench.await_group(f"driftline-{task.name}-serve", worker)
            if args.curve:
                return _curve(bench, tasks, seconds)
            found = laps(bench, tasks, args.rate, [WARM_UP_S, *[seconds] * rounds])
    kept = {name: [lap for lap in every if lap.number > 0] for name, every in found.items()}
    print(f"{args.rate:g} events/s, {rounds} turns of {seconds:g} s each, {args.partitions} partitions\n")
    return _report(kept)


def _curve(bench: "Bench", tasks: "Mapping[str, Task]", seconds: float) -> Mapping[str, float]:
    """Latency by load; ends where predictions do not keep up with the events any more."""
    import numpy as np

    from benchmarks._probe import laps
    from infra.errors import UserError

    figures: dict[str, float] = {}
    rows: list[list[str | float]] = []
    for number, rate in enumerate(CURVE):
        try:
            found = laps(bench, tasks, rate, [WARM_UP_S / 3, seconds], seed=number + 1)
        except UserError as error:
            print(f"{rate:,} events/s are too much: {error}\n")
            break
        row: list[str | float] = [f"{rate:,}"]
        for name, (_, lap) in found.items():
            p50, p99 = np.percentile(lap.parts.sum(axis=1), [50, 99]).tolist()
            figures |= {f"{name}_p50_ms_at_{rate}": p50, f"{name}_p99_ms_at_{rate}": p99}
            row += [p50, p99]
        rows.append([*row, "█" * max(1, round(figures[f"exactly_once_p50_ms_at_{rate}"] / 10))])
    print("Milliseconds from an event to its prediction, by load\n")
    heads = [f"{name} {p}" for name in GUARANTEES for p in ("p50", "p99")]
    print(table(["events/s", *heads, "█ = 10 ms, exactly once p50"], rows))
    return figures


def _report(kept: Mapping[str, Sequence["Lap"]]) -> Mapping[str, float]:
    import numpy as np

    figures: dict[str, float] = {}
    rows, parts = [], []
    for name, every in kept.items():
        total = np.concatenate([lap.parts.sum(axis=1) for lap in every])
        middles = [float(np.median(lap.parts.sum(axis=1))) for lap in every]
        p50, p90, p99 = np.percentile(total, [50, 90, 99]).tolist()
        rows.append(
            [name, len(total), p50, p90, p99, float(total.max()), f"{min(middles):.0f} to {max(middles):.0f}"]
        )
        parts.append(np.median(np.concatenate([lap.parts for lap in every]), axis=0).tolist())
        figures |= {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99}
    print(table(["guarantee", "events", "p50 ms", "p90 ms", "p99 ms", "most ms", "p50 of the turns"], rows))
    print("\nWhere the time goes: the median of each part, in ms\n")
    lines = [[what, *(part[i] for part in parts), why] for i, (what, why) in enumerate(PARTS)]
    print(table(["part", *kept, "what is in it"], lines))
    return figures


if __name__ == "__main__":
    main()

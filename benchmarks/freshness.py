"""How long until a label changes what is served, what a refresh weighs, and what freshness is worth.

The real roles serve, join and learn run on a real Kafka. Events are served first; then their labels come at a steady
rate, while some more events are scored. A label is fresh when a prediction is made by a version that learned it; a
version has learned a label when it learned of an event at least as new: labels come in the order of their events.
With `--tuning` all of it runs a second time with a population of models in a budget beside the champion.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

INTERVALS = ("0s", "1s", "10s", "1m", "30m", "5h")


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--rate", type=int, default=5000, help="labels a second (default: 5,000)")
    made.add_argument("--seconds", type=float, default=0.0, help="of labels; default: 30, quick 6")
    made.add_argument(
        "--refresh-every", default="200ms", metavar="TIME", help="serving.refresh_every (200ms)"
    )
    made.add_argument(
        "--tuning",
        type=float,
        nargs="?",
        const=0.2,
        default=0.0,
        metavar="BUDGET",
        help="also with a population of eight in this share of the learner's work (default: without; 0.2 if not given)",
    )
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Run both parts, print the tables, return the figures."""
    import numpy as np

    from benchmarks._broker import Bench
    from benchmarks._freshness import run, update_bytes

    seconds = args.seconds or (6.0 if args.quick else 30.0)
    with scratch() as home, Bench(home, 1) as bench:
        ways = {
            budget: run(bench, args.rate, seconds, args.refresh_every, budget)
            for budget in dict.fromkeys((0.0, args.tuning))
        }
    found = ways[0.0]
    changed, whole = update_bytes(100_000 if args.quick else 1_000_000, 1000)
    print(f"{len(found.seconds):,} labels at {args.rate:,}/s, a refresh every {args.refresh_every}\n")
    figures, rows = dict[str, float](), list[list[str | float]]()
    for budget, way in ways.items():
        p50, p99, longest = np.percentile(way.seconds, [50, 99, 100]).tolist()
        rows.append([f"tuning in {budget:g}" if budget else "alone", p50, p99, longest, way.rungs])
        figures |= {"tuned_p50_s": p50, "tuned_p99_s": p99} if budget else {"p50_s": p50, "p99_s": p99}
    print(table(["label to a score that knows it, seconds", "p50", "p99", "longest", "rungs"], rows))
    print(f"\nrefreshes: {len(found.refresh_bytes)}, bytes on average {np.mean(found.refresh_bytes):,.0f}")
    print(
        f"DeepFM, 8 categories of 50,000 values x 16, a refresh after each 1,000 labels: {changed:,.0f} bytes;"
    )
    print(f"the whole model {whole:,}, {whole / changed:.1f} times as much\n")
    _worth(15_000 if args.quick else 100_000)
    return figures | {"bytes_ratio": whole / changed}


def _worth(events: int) -> None:
    """What is lost by refreshing less often: backtests of one stream that drifts, policy continuous."""
    from benchmarks._freshness import backtest

    rows: list[list[str | float]] = []
    for every in INTERVALS:
        values = backtest(events, every)
        label = "each batch" if every == "0s" else every
        bar = "#" * round(200 * max(0.0, values["auc"] - 0.6))
        rows.append([label, values["auc"], values["log_loss"], bar])
    print("simulated clicks, sudden drift in the middle: refreshes every so much time of the stream\n")
    print(table(["refresh", "AUC", "log loss", "AUC from 0.6"], rows))


if __name__ == "__main__":
    main()

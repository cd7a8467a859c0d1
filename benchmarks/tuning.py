"""Tuning while streaming: what a population of eight costs the champion, against its budget, and what it finds.

One arena learns a steady stream with a learning rate that is a tenth of what would be right. First a population of
eight learns beside it, whose winners wait (policy `drift`), with several budgets. Told are examples a second of
processor time, the share of that time that was not the champion's, what the budget's estimate says of it, the longest
step, and whether the champion's weights are to the bit those without tuning. Then winners go on trial (policy
`better`): told is the champion's log loss over the last quarter. Medians over the runs, each with another seed.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._common import finish, parser, table

Found = dict[str, Any]

if TYPE_CHECKING:
    from learners.arena import Arena
    from learners.batch import Batch

BUDGETS = (0.1, 0.2, 0.5)
BATCH, WARM = 256, 20  # rows of a step; steps that are not timed
RATE, RIGHT = 0.0002, 0.002


def stream(n: int, seed: int) -> "Batch":
    """n events of eight numbers and two categories whose products decide."""
    import numpy as np

    from learners.batch import Batch

    random = np.random.default_rng(seed)
    numbers = random.normal(size=(n, 8)).astype(np.float32)
    values = random.integers(1, 200, (n, 2))
    effects = random.normal(0, 0.8, (2, 200))
    odds = numbers[:, 0] - numbers[:, 1] + numbers[:, 2] * numbers[:, 3]
    odds += effects[0, values[:, 0]] + effects[1, values[:, 1]] - 1.0
    label = (random.random(n) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    moments, served = np.arange(n, dtype=np.int64), np.full(n, np.nan, np.float32)
    names = [str(i) for i in range(n)]
    return Batch(names, moments, moments, numbers, values * 0x1E3779B97F4A7C15, served, label)


def arena(seed: int, rate: float, policy: Any, budget: float) -> "Arena":
    from learners.arena import Arena
    from learners.batch import ModelConfig, Schema
    from learners.drift import DriftConfig
    from learners.space import TuningConfig

    model = ModelConfig(family="dcn", batch_size=BATCH, learning_rate=rate)
    space: dict[str, Any] = {"learning_rate": {"min": RATE / 10, "max": 100 * RATE}}
    tuning = TuningConfig(population=8, rungs=3, events=512, budget=budget, space=space) if budget else None
    schema, drift = Schema(tuple(f"n{i}" for i in range(8)), ("a", "b"), "bench"), DriftConfig(policy=policy)
    return Arena(schema, model, model, drift, seed, device="cpu", tuning=tuning)


def run(made: "Arena", batch: "Batch") -> Found:
    """Let an arena learn it all; the champion's losses are those before it learned."""
    import numpy as np

    from learners.challenger import Decision
    from learners.prequential import log_loss

    took, losses, decided = [], [], []
    for start in range(0, len(batch), BATCH):
        part = batch.slice(start, start + BATCH)
        losses.append(log_loss(part.label, made.champion.score(part.numbers, part.categories)))
        begun = time.process_time()
        decided += [each for each in made.observe(part, created_ms=0) if isinstance(each, Decision)]
        took.append(time.process_time() - begun)
    timed = took[WARM:]
    return {
        "examples_per_s": len(timed) * BATCH / sum(timed),
        "longest_ms": 1_000 * max(timed),
        "loss": float(np.concatenate(losses[-len(losses) // 4 :]).mean()),
        "rungs": sum(each.action == "tune" for each in decided),
        "promoted": sum(each.action == "promote" for each in decided),
        "planned": made.budget.beside / (made.budget.beside + made.budget.champion),
        "weights": made.champion.state(),
    }


def compared(batches: Sequence["Batch"]) -> tuple[dict[float, list[Found]], dict[str, list[Found]]]:
    """What each budget cost, and what each way to set the learning rate came to; a list over the seeds."""
    costs: dict[float, list[Found]] = {budget: [] for budget in (0.0, *BUDGETS)}
    ways: dict[str, list[Found]] = {"set wrongly": [], "the same, tuned": [], "set rightly": []}
    for seed, batch in enumerate(batches):
        run(arena(seed, RATE, "drift", 0.0), batch.slice(0, 2 * WARM * BATCH))  # torch's first steps are slow
        for budget, runs in costs.items():
            runs.append(run(arena(seed, RATE, "drift", budget), batch))
        ways["set wrongly"].append(costs[0.0][-1])
        ways["the same, tuned"].append(run(arena(seed, RATE, "better", 0.2), batch))
        ways["set rightly"].append(run(arena(seed, RIGHT, "better", 0.0), batch))
    return costs, ways


def main() -> None:
    """Measure on the same events, with and without a population."""
    options = parser(__doc__ or "").parse_args()

    def measure() -> dict[str, float]:
        import torch

        torch.set_num_threads(1)
        n, seeds = (25_000, 1) if options.quick else (60_000, 2)
        costs, ways = compared([stream(n, seed) for seed in range(seeds)])
        figures: dict[str, float] = {}
        rows: list[list[str | float]] = []
        for budget, runs in costs.items():
            speeds = [each["examples_per_s"] for each in runs]
            beside = [
                1 - speed / alone["examples_per_s"] for speed, alone in zip(speeds, costs[0.0], strict=True)
            ]
            same = all(
                each["weights"] == alone["weights"] for each, alone in zip(runs, costs[0.0], strict=True)
            )
            typical = {key: median(each[key] for each in runs) for key in ("longest_ms", "rungs", "planned")}
            rows.append([
                f"{budget:.1f}", median(speeds), max(median(beside), 0.0), typical["planned"], typical["longest_ms"],
                typical["rungs"], "yes" if same else "NO",
            ])  # fmt: skip
            figures[f"examples_per_s_{budget:.1f}"] = median(speeds)
            if budget:
                figures[f"beside_{budget:.1f}"] = median(beside)
                figures[f"same_weights_{budget:.1f}"] = float(same)
        heads = ["budget", "examples/s", "time beside", "planned", "longest step ms", "rungs", "same weights"]
        print(table(heads, rows))
        losses = {way: median(each["loss"] for each in runs) for way, runs in ways.items()}
        rows = [[way, loss, sum(each["promoted"] for each in ways[way])] for way, loss in losses.items()]
        print("\n" + table(["learning rate", "log loss at the end", "promotions"], rows))
        return figures | {
            f"loss_{way.replace(' ', '_').replace(',', '')}": loss for way, loss in losses.items()
        }

    finish(measure, options.json)


if __name__ == "__main__":
    main()

"""What keeps a model from forgetting and from setting: what is it worth where concepts come back, or never end?

Streams of three kinds, 8 numbers and a category, each stretch under another concept:
  rules     the rule comes back among three, the inputs stay: what was right is wrong for a while, and then right again
  regions   each of three concepts has inputs and values of its own, as seasons have: nothing contradicts anything
  many      a new rule every time, to see whether the last is learned as well as the first
One multilayer perceptron learns them in steps of 64 rows, with Driftline's detectors to tell it of drifts. The arms
differ in one thing: `newest`, `reservoir`, `since_drift` rehearse two old rows beside each new one, of 2,000 kept rows;
`ewc` holds weights; `renew` makes hidden units new. `arena` is Driftline's whole loop, challengers and all, and
`library` the same with earlier champions tried first; both only where something comes back.

Log losses are prequential, in nats: over all rows (`_loss`), over the 500 rows after each return of a concept
(`_returned`), and, on many, over the last third of the stretches minus the first third (`_lost`): what came of the
plasticity. The differences to the arm without anything (of library to arena) are paired by seed, with 95 % intervals.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, table

if TYPE_CHECKING:
    from learners.batch import Batch, ModelConfig, Schema

STEP = 64
AFTER = 500  # rows after the return of a concept
KEPT = {"replay": 2, "replay_rows": 2_000}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "newest": KEPT,
    "reservoir": {**KEPT, "replay_keep": "reservoir"},
    "since_drift": {**KEPT, "replay_keep": "since_drift"},
    "ewc": {"ewc": 3_000.0},
    "renew": {"renew": 0.01},
}
NUMBERS, VALUES, CONCEPTS = 8, 40, 3
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recurring:
    """Rows one a second, the first row of each stretch, and its concept."""

    rows: "Batch"
    schema: "Schema"
    starts: tuple[int, ...]
    concepts: tuple[int, ...]

    def returns(self) -> list[int]:
        """First rows of the stretches whose concept was there before."""
        return [start for i, start in enumerate(self.starts) if self.concepts[i] in self.concepts[:i]]


def _rule(random: np.random.Generator) -> Callable[[Floats], Floats]:
    """A small net that nobody learned: log-odds [n] of inputs [n, NUMBERS]."""
    inner, shift, outer = random.normal(0, 1, (NUMBERS, 6)), random.normal(0, 1, 6), random.normal(0, 1.5, 6)
    return lambda x: np.tanh(x @ inner * 2 / NUMBERS**0.5 + shift) @ outer


def made(kind: str, seed: int, stretches: int, length: int) -> Recurring:
    """A stream of a kind. No concept follows itself, and the first ones come in turn."""
    from learners.batch import Batch, Schema

    random = np.random.default_rng(seed)
    many = stretches if kind == "many" else CONCEPTS
    order = list(range(many))
    while len(order) < stretches:
        order.append(int(random.choice([each for each in range(many) if each != order[-1]])))
    rules, effects = [_rule(random) for _ in range(many)], random.normal(0, 1, (many, VALUES))
    apart = kind == "regions"
    centres = random.normal(0, 1.2 if apart else 0.0, (many, NUMBERS))
    inputs, values, labels = [], [], []
    for concept in order:
        x = centres[concept] + random.normal(0, 0.7 if apart else 1.0, (length, NUMBERS))
        value = random.integers(0, VALUES, length)
        odds = rules[concept](x) + effects[concept][value]
        labels.append(random.random(length) < 1 / (1 + np.exp(-odds)))
        inputs.append(x)
        values.append(value + 1 + (1_000 * concept if apart else 0))
    n = stretches * length
    moments = np.arange(n, dtype=np.int64) * 1_000
    rows = Batch(
        [""] * n, moments, moments, np.concatenate(inputs).astype(np.float32),
        np.concatenate(values).astype(np.int64)[:, None] * 0x1E3779B97F4A7C15,
        np.full(n, np.nan, np.float32), np.concatenate(labels).astype(np.float32),
    )  # fmt: skip
    schema = Schema(tuple(f"x{i}" for i in range(NUMBERS)), ("value",), kind)
    return Recurring(rows, schema, tuple(range(0, n, length)), tuple(order))


def base() -> "ModelConfig":
    """The model that all arms share."""
    from learners.batch import ModelConfig

    return ModelConfig(
        family="mlp", hidden=(32, 16), rows=512, embedding=4, learning_rate=0.01, batch_size=STEP
    )


def learned(stream: Recurring, seed: int, settings: Mapping[str, Any]) -> Floats:
    """Losses [n] of one model that learns all the time and is told of drifts."""
    from learners.detectors import Detectors
    from learners.drift import DriftConfig
    from learners.prequential import log_loss
    from learners.trainer import Trainer

    trainer = Trainer(stream.schema, replace(base(), **settings), seed, "L1", "cpu")
    detectors, losses = Detectors(stream.schema, DriftConfig()), list[Floats]()
    for start in range(0, len(stream.rows), STEP):
        batch = stream.rows.slice(start, min(start + STEP, len(stream.rows)))
        score = trainer.score(batch.numbers, batch.categories)
        losses.append(log_loss(batch.label, score))
        for alert in detectors.update(batch, score, losses[-1], trainer.version):
            recent = stream.rows.slice(max(start - 20_000, 0), start)
            trainer.drifted([recent], alert.since_ms)
        trainer.train(batch)
    return np.concatenate(losses)


def looped(stream: Recurring, seed: int, recalls: bool) -> Floats:
    """Losses [n] of what the whole loop serves, with earlier champions tried or not."""
    from learners.arena import Arena
    from learners.drift import DriftConfig
    from learners.entrants import Entrants
    from learners.prequential import log_loss

    usual = Entrants._recalled
    challenger, losses = replace(base(), learning_rate=3 * base().learning_rate), list[Floats]()
    try:
        if not recalls:
            Entrants._recalled = lambda *_: None  # type: ignore[method-assign]
        drift = DriftConfig(keep_reference=False)
        arena = Arena(stream.schema, base(), challenger, drift, seed, metrics_every=10**12, device="cpu")
        for start in range(0, len(stream.rows), STEP):
            batch = stream.rows.slice(start, min(start + STEP, len(stream.rows)))
            score = arena.champion.score(batch.numbers, batch.categories)
            losses.append(log_loss(batch.label, score))
            arena.observe(batch, created_ms=0)
    finally:
        Entrants._recalled = usual  # type: ignore[method-assign]
    return np.concatenate(losses)


def figures(stream: Recurring, losses: Floats) -> dict[str, float]:
    """The figures of one arm on one stream, see above."""
    found = {"loss": float(losses.mean())}
    if returns := stream.returns():
        found["returned"] = float(np.mean([losses[start : start + AFTER].mean() for start in returns]))
        return found
    length, third = stream.starts[1], len(stream.starts) // 3
    means = losses.reshape(-1, length).mean(1)[1:]  # the first stretch is the first lesson of all
    return found | {"lost": float(means[-third:].mean() - means[:third].mean())}


def measure(seeds: int, stretches: Mapping[str, int], length: int) -> dict[str, float]:
    """All figures; prints the table."""
    import torch

    torch.set_num_threads(1)  # small models; and other work may run beside it
    found: dict[str, dict[str, list[float]]] = {}
    for kind, many in stretches.items():
        arms: dict[str, Callable[[Recurring, int], Floats]] = {
            name: lambda stream, seed, settings=settings: learned(stream, seed, settings)  # type: ignore[misc]
            for name, settings in ARMS.items()
        }
        if kind != "many":
            arms["arena"] = lambda stream, seed: looped(stream, seed, recalls=False)
            arms["library"] = lambda stream, seed: looped(stream, seed, recalls=True)
        for seed in range(seeds):
            stream = made(kind, seed, many, length)
            for arm, run in arms.items():
                for name, value in figures(stream, run(stream, seed)).items():
                    found.setdefault(f"{kind}_{arm}", {}).setdefault(name, []).append(value)
    print(
        table(
            ["stream", "arm", "loss", "against", "difference", "returned/lost", "difference"], rows_of(found)
        )
    )
    return {f"{arm}_{name}": float(np.mean(v)) for arm, each in found.items() for name, v in each.items()}


def rows_of(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[list[str | float]]:
    """A line for each stream and arm: each figure, and its difference to the arm that it is compared with."""
    lines: list[list[str | float]] = []
    for key, values in found.items():
        kind, arm = key.split("_", 1)
        other = {"plain": "", "arena": "plain", "library": "arena"}.get(arm, "plain")
        line: list[str | float] = [kind, arm]
        for place, (name, mine) in enumerate(values.items()):
            line += [f"{np.mean(mine):.4f}", *([other] if place == 0 else [])]
            line.append(difference(mine, found[f"{kind}_{other}"][name]) if other else "")
        lines.append(line)
    return lines


def difference(mine: Sequence[float], others: Sequence[float]) -> str:
    """The mean of paired differences, and the half-width of its 95 % interval by Student's t."""
    from scipy.stats import t

    gaps = np.array(mine) - np.array(others)
    half = t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
    return f"{gaps.mean():+.4f} ± {half:.4f}"


def main() -> None:
    """Measure every arm on the same streams."""
    made_parser = parser(__doc__ or "")
    made_parser.add_argument("--seeds", type=int, default=8)
    options = made_parser.parse_args()
    quick = {"rules": 5, "regions": 5, "many": 9}
    full = {"rules": 12, "regions": 12, "many": 30}
    seeds, stretches, length = (2, quick, 1_200) if options.quick else (options.seeds, full, 2_000)
    finish(lambda: measure(seeds, stretches, length), options.json)


if __name__ == "__main__":
    main()

"""One entity sends turned labels: how much does it spoil, what bounds it, and does a challenger win by learning them?

A stream of 8 numbers and 20 items; 200 customers, the busiest with a few per cent of the events. In the third quarter
one more customer sends events about few items only, each with the label turned.

**Burst.** They are 5 % of the traffic, about one item, of which others send no more. A net learns all that comes, with
nothing against it (`none`), with a cap of 20 examples of a customer in 2,000 (`cap`), with a bounded loss, the Brier
score (`mse`), with both (`both`). Log loss (nats, prequential) of the events of all others: from the beginning of the
burst on (`_loss`), and in it about that item (`_item`); both too where the attacker tells the truth (`_calm`,
`_calm_item`), since what is lost there is what a bound costs.

**Challengers.** They are 30 % of the traffic, about five items; the alarm starts challengers that learn what came
since. Without and with (`_holdout`) a tenth of the customers held out, of which the attacker is none: the share of
seeds in which a challenger was promoted while the burst lasted (`poisoned_promoted`), and the champion's log loss in
the burst on what others sent (`poisoned_loss`). The same where the rule does change, for everybody: `true_promoted`,
`true_loss`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, table

if TYPE_CHECKING:
    from learners.batch import Batch, ModelConfig, Schema
    from learners.trust import TrustConfig

STEP = 64
NUMBERS, ITEMS, CUSTOMERS = 8, 20, 200
HOLDOUT = 0.1
CAP = {"cap": 20, "window": 2_000}
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the model, of [trust]
    "none": ({}, {}),
    "cap": ({}, CAP),
    "mse": ({"loss": "mse"}, {}),
    "both": ({"loss": "mse"}, CAP),
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Attacked:
    """Rows one a second; `others` [n]: those that the attacker did not send, `hit` [n]: those about the item that it
    sends about; and the burst's first row and end.
    """

    rows: "Batch"
    schema: "Schema"
    others: NDArray[np.bool_]
    hit: NDArray[np.bool_]
    burst: tuple[int, int]


def made(
    seed: int, n: int, share: float, hit: int = 1, *, turned: bool = True, drifts: bool = False
) -> Attacked:
    """A stream in whose burst an attacker sends a `share` of the events, about the first `hit` items; with `drifts` the
    rule changes instead.
    """
    from learners.batch import Batch, Schema
    from learners.trust import held_out

    random = np.random.default_rng(seed)
    begin, end = n // 2, 3 * n // 4
    inside = np.arange(n) >= begin
    burst = inside & (np.arange(n) < end)
    x, item = random.normal(0, 1, (n, NUMBERS)), random.integers(0, ITEMS, n)
    busy = np.arange(1, CUSTOMERS + 1) ** -0.7
    names = random.integers(1, 2**62, CUSTOMERS + 1)
    while held_out(names[-1:], HOLDOUT)[0]:  # the attacker teaches
        names[-1] = random.integers(1, 2**62)
    customer = names[random.choice(CUSTOMERS, n, p=busy / busy.sum())]
    attack = burst & (random.random(n) < share) & (not drifts)
    item[attack], customer[attack] = random.integers(0, hit, n)[attack], names[-1]
    weights, effects = random.normal(0, 0.7, NUMBERS), random.normal(0, 1, ITEMS)
    odds = x @ weights + effects[item]
    odds = np.where(inside & drifts, x @ random.permutation(weights) - effects[item], odds)
    label = random.random(n) < 1 / (1 + np.exp(-odds))
    label = np.where(attack & turned, ~label, label)
    moments = np.arange(n, dtype=np.int64) * 1_000
    rows = Batch(
        [""] * n, moments, moments, x.astype(np.float32), (item[:, None] + 1) * 0x1E3779B97F4A7C15,
        np.full(n, np.nan, np.float32), label.astype(np.float32), entity=customer,
    )  # fmt: skip
    schema = Schema(tuple(f"x{i}" for i in range(NUMBERS)), ("item",), "poison")
    return Attacked(rows, schema, ~attack, item < hit, (begin, end))


def base(**settings: Any) -> "ModelConfig":
    """The model that all share."""
    from learners.batch import ModelConfig

    usual = ModelConfig(
        family="mlp", hidden=(32, 16), rows=256, embedding=4, learning_rate=0.005, batch_size=STEP
    )
    return replace(usual, **settings)


def learned(stream: Attacked, seed: int, settings: Mapping[str, Any], trusted: Mapping[str, Any]) -> Floats:
    """Losses [n] of one model that learns all the time what it may."""
    from learners.prequential import log_loss
    from learners.trainer import Trainer
    from learners.trust import Trust, TrustConfig

    trainer, trust = (
        Trainer(stream.schema, base(**settings), seed, "L1", "cpu"),
        Trust(TrustConfig(**trusted)),
    )
    losses = list[Floats]()
    for start in range(0, len(stream.rows), STEP):
        batch = stream.rows.slice(start, min(start + STEP, len(stream.rows)))
        losses.append(log_loss(batch.label, trainer.score(batch.numbers, batch.categories)))
        trainer.train(trust.admitted(batch))
    return np.concatenate(losses)


def judged(stream: Attacked, seed: int, trust: "TrustConfig") -> tuple[int | None, float]:
    """Events from the beginning of the burst to the first promotion in it, None without one.

    And the champion's mean loss in the burst on what others sent.
    """
    from learners.arena import Arena, Decision
    from learners.drift import DriftConfig
    from learners.prequential import log_loss

    drift, promoted, losses = DriftConfig(keep_reference=False), list[int](), list[Floats]()
    slow, fast = base(learning_rate=0.002), base(learning_rate=0.01)
    arena = Arena(stream.schema, slow, fast, drift, seed, metrics_every=10**12, device="cpu", trust=trust)
    begin, end = stream.burst
    for start in range(0, end, STEP):
        batch = stream.rows.slice(start, min(start + STEP, end))
        losses.append(log_loss(batch.label, arena.champion.score(batch.numbers, batch.categories)))
        for event in arena.observe(batch, created_ms=0):
            if isinstance(event, Decision) and event.action == "promote" and start >= begin:
                promoted.append(start + len(batch) - begin)
    clean = np.concatenate(losses)[begin:end][stream.others[begin:end]]
    return (promoted[0] if promoted else None), float(clean.mean())


def bursts(seeds: int, n: int) -> dict[str, float]:
    """What a burst of 5 % spoils under each bound; prints the table."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        stream, calm = made(seed, n, 0.05), made(seed, n, 0.05, turned=False)
        after = np.arange(n) >= stream.burst[0]
        during = after & (np.arange(n) < stream.burst[1])
        for arm, (settings, trusted) in ARMS.items():
            losses, quiet = learned(stream, seed, settings, trusted), learned(calm, seed, settings, trusted)
            figures = {
                "loss": losses[after & stream.others].mean(),
                "item": losses[during & stream.others & stream.hit].mean(),
                "calm": quiet[after & stream.others].mean(),
                "calm_item": quiet[during & stream.others & stream.hit].mean(),
            }
            for name, value in figures.items():
                found.setdefault(arm, {}).setdefault(name, []).append(float(value))
    heads = list(found["none"])
    shown = [
        [arm, *(f"{np.mean(v):.4f} ± {np.std(v) / len(v) ** 0.5:.4f}" for v in f.values())]
        for arm, f in found.items()
    ]
    print(table(["against it", *heads], shown), end="\n\n")
    return {f"{arm}_{name}": float(np.mean(v)) for arm, each in found.items() for name, v in each.items()}


def challengers(seeds: int, n: int) -> dict[str, float]:
    """Who is promoted in a burst of 30 %, and after a true drift; prints the table."""
    from learners.trust import TrustConfig

    lines, found = list[Sequence[str | float]](), dict[str, float]()
    for kind in ("poisoned", "true"):
        streams = [made(seed, n, 0.3, 5, drifts=kind == "true") for seed in range(seeds)]
        for suffix, share in (("", 0.0), ("_holdout", HOLDOUT)):
            ends = [judged(stream, seed, TrustConfig(holdout=share)) for seed, stream in enumerate(streams)]
            after, losses = [waited for waited, _ in ends if waited is not None], [loss for _, loss in ends]
            found[f"{kind}_promoted{suffix}"] = len(after) / seeds
            found[f"{kind}_loss{suffix}"] = float(np.mean(losses))
            spread = f"{np.mean(losses):.4f} ± {np.std(losses) / seeds**0.5:.4f}"
            median = f"{np.median(after):,.0f}" if after else "never"
            lines.append([kind + suffix, len(after) / seeds, median, spread])
    print(table(["case", "share promoted", "events until then (median)", "loss of others"], lines))
    return found


def main() -> None:
    """Measure both parts on the same seeds."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("--seeds", type=int, default=10)
    options = options_of.parse_args()

    def measure() -> dict[str, float]:
        import torch

        torch.set_num_threads(1)  # small models; and other work may run beside it
        seeds, n = (2, 8_000) if options.quick else (options.seeds, 32_000)
        return bursts(seeds, n) | challengers(seeds, n)

    finish(measure, options.json)


if __name__ == "__main__":
    main()

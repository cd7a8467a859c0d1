"""Does drift raise one alarm, soon; and is the loop of alarm, challenger and promotion worth its cost?

Streams with known changes: River's SEA, Agrawal (sudden, gradual, recurring), hyperplane (incremental) and LED; inputs
that move while the rule stays; 50 small drifts; none, and none with a daily cycle; and, where the file is there, real
card transactions with injected changes (see `_drift_streams.py`). All labels are known at once.

**Alarms.** Every detector watches the same model, which learns all the time. Driftline's are all its alerts: loss,
inputs and scores, one for one drift. River's watch the model's scaled loss, DDM and EDDM its errors. An alarm hits a
change if it comes after its first row and at most WINDOW rows after its last one, and before the next change; the
first such alarm is the hit, any further one is false, as is one outside. F1 = 2 hits / (2 hits + false + missed), for
each stream and seed; where nothing changes it is 1 without an alarm and 0 with one. The mean is over streams of equal
weight, then seeds. Delay is rows from the first row of the change to the hit.
  f1              Driftline with its default settings
  f1_adwin        River's ADWIN as it comes
  f1_best_peer    the best of River's detectors over settings from the default to ever fewer alarms, each as it comes
                  and with Driftline's own cooldown between alarms: chosen in hindsight, so at any false-alarm budget
  f1_always_fire  an alarm every so many rows, with the best such number in hindsight

**Excess loss after drift.** Over HORIZON rows from the start of each change (less where the next one is nearer): the
mean loss of what was served, before the label, minus what is reached when it settled: the lowest loss of any policy in
the last quarter of that stretch. The ratio is of Driftline's policy `full` to the same model learning continuously,
and to the same model trained every PERIOD rows on what came since; summed over streams of equal weight. Where nothing
changes, the loss of `full` minus that of continuous is `loss_added_still` (nats an event).

**Wrong promotions.** 10,000 streams of paired losses with no difference between the arms; the share that the verdict,
asked after every event, promotes (`wrong_promotion_rate`; alpha is 0.01).
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks import _drift_peers as peers
from benchmarks._common import ROOT, finish, parser, table
from benchmarks._drift_streams import MAKERS, Drifting, real

LENGTH, QUICK_LENGTH = 4_000, 3_000  # rows of a stretch without a change, about
WINDOW = 2_500
HORIZON = 5_000
PERIOD = 2_500
STEP = 64  # rows that are scored before any of them is learned
EVERY = (1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 8_000)  # always-fire
NULL_STREAMS, NULL_EVENTS = 10_000, 5_000
POLICIES = ("full", "continuous", "periodic")
Floats = NDArray[np.float64]
Maker = Callable[[int, int], Drifting | None]  # of a seed and a length


def replayed(stream: Drifting, seed: int) -> tuple[dict[str, Floats], peers.Alarms]:
    """Losses [rows] of what each policy served; and Driftline's alarms on the model that learns continuously."""
    from learners.arena import Arena
    from learners.batch import ModelConfig
    from learners.detectors import Detectors
    from learners.drift import DriftConfig
    from learners.prequential import log_loss
    from learners.trainer import Trainer

    model, challenger = ModelConfig(batch_size=STEP), ModelConfig(batch_size=STEP, learning_rate=0.006)
    rows, schema = stream.rows, stream.schema
    continuous, periodic = (Trainer(schema, model, seed, "L1", "cpu") for _ in range(2))
    arena = Arena(schema, model, challenger, DriftConfig(), seed, metrics_every=10**12, device="cpu")
    detectors, found = Detectors(schema, DriftConfig()), dict[str, int]()
    served: dict[str, list[Floats]] = {name: [] for name in POLICIES}
    warm = stream.changes[0][0] if stream.changes else len(rows) // 4
    trained = 0
    for start in range(0, len(rows), STEP):
        batch = rows.slice(start, min(start + STEP, len(rows)))
        end = start + len(batch)
        for name, arm in (("full", arena.champion), ("periodic", periodic), ("continuous", continuous)):
            score = arm.score(batch.numbers, batch.categories)
            served[name].append(log_loss(batch.label, score))
        for alert in detectors.update(batch, score, served["continuous"][-1], continuous.version):
            found.setdefault(alert.alert_id, end)
        continuous.train(batch)
        arena.observe(batch, created_ms=0)
        if end <= warm or end - trained >= PERIOD:
            periodic.train(rows.slice(trained, end))
            trained = end
    return {name: np.concatenate(losses) for name, losses in served.items()}, list(found.values())


def excess(stream: Drifting, losses: Mapping[str, Floats]) -> dict[str, float]:
    """Mean excess loss (nats an event) of each policy over the HORIZON after all changes, see above."""
    total, rows = dict.fromkeys(losses, 0.0), 0
    for start, end in stream.regimes()[1:]:
        settled = min(float(each[end - (end - start) // 4 : end].mean()) for each in losses.values())
        stop = min(start + HORIZON, end)
        rows += stop - start
        for name, each in losses.items():
            total[name] += float((each[start:stop] - settled).sum())
    return {name: value / rows for name, value in total.items()}


def alarms(losses: Floats, ours: peers.Alarms, seed: int) -> dict[str, peers.Alarms]:
    """Alarms of everyone on one model's losses, by name; "ADWIN 0.002" is as it comes, "ADWIN 0.002 +" has our
    cooldown.
    """
    from learners.drift import DriftConfig

    values = {"loss": peers.scaled(losses), "error": (losses > np.log(2)).astype(np.float64)}
    found = {"driftline": ours}
    for name, settings in peers.BUDGETS.items():
        for setting in settings:
            raw = peers.alarms_of(
                peers.peer(name, setting, seed), values["error" if name in peers.ON_ERRORS else "loss"]
            )
            found[f"{name} {setting:g}"] = raw
            found[f"{name} {setting:g} +"] = peers.spaced(raw, DriftConfig().cooldown)
    for every in EVERY:
        found[f"always {every}"] = peers.always(len(losses), every)
    return found


def wrong_promotions() -> float:
    """Share of null streams in which a challenger that is no better than `min_effect` is ever promoted."""
    from learners.drift import DriftConfig
    from learners.verdict import Wealth

    config, random, wrong = DriftConfig(), np.random.default_rng(0), 0
    for number in range(NULL_STREAMS):
        match number % 4:
            case 0:  # the same spread throughout
                differences = random.normal(config.min_effect, 0.3, NULL_EVENTS)
            case 1:  # nearly always a little better, seldom much worse
                seldom = random.random(NULL_EVENTS) < 0.01
                differences = np.where(seldom, -2.0, (config.min_effect + 0.02) / 0.99)
            case 2:  # nearly always a little worse, seldom much better
                seldom = random.random(NULL_EVENTS) < 0.01
                differences = np.where(seldom, 2.0, (config.min_effect - 0.02) / 0.99)
            case _:  # calm and wild times
                wildness = np.repeat(np.exp(random.normal(-2, 1, NULL_EVENTS // 100)), 100)
                reach = 2.0 - config.min_effect
                noise = np.clip(random.normal(size=NULL_EVENTS) * wildness, -reach, reach)
                differences = config.min_effect + noise
        path = Wealth(config.min_effect).update(differences)[config.min_events :]
        wrong += bool(path.max() >= np.log(1 / config.alpha))
    return wrong / NULL_STREAMS


def run(make: Maker, seed: int, length: int) -> dict[str, Any] | None:
    """Everything about one stream and seed, as JSON holds it; None for a stream whose file is not there."""
    stream = make(seed, length)
    if stream is None:
        return None
    losses, ours = replayed(stream, seed)
    if stream.changes:
        cost = excess(stream, losses)
    else:
        cost = {name: float(each.mean()) for name, each in losses.items()}
    found = alarms(losses["continuous"], ours, seed)
    scores = {name: asdict(peers.score(rows, stream.changes, WINDOW)) for name, rows in found.items()}
    return {"stream": stream.name, "seed": seed, "length": length, "cost": cost, "alarms": scores}


def runs(seeds: int, length: int, folder: Path, record: Path | None) -> Iterator[dict[str, Any]]:
    """`run` of all streams and seeds. What `record` has is not done again, and what is done is added to it."""
    done = dict[tuple[int, int, int], dict[str, Any] | None]()
    if record is not None and record.exists():
        for line in record.read_text().splitlines():
            key, result = json.loads(line)
            done[tuple(key)] = result
    makers: list[Maker] = [*MAKERS, partial(real, folder)]
    for seed in range(seeds):
        for number, make in enumerate(makers):
            key = (length, seed, number)
            if key not in done:
                done[key] = run(make, seed, length)
                if record is not None:
                    with record.open("a") as file:
                        file.write(json.dumps([key, done[key]]) + "\n")
            result = done[key]
            if result is not None:
                yield result


def best(f1: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> str:
    """The name with the highest mean F1."""
    return max(names, key=lambda name: float(f1[name].mean()))


def measure(seeds: int, length: int, folder: Path, record: Path | None = None) -> dict[str, float]:
    """All figures; prints the tables."""
    import torch

    torch.set_num_threads(1)  # small models; and other work may run beside it
    found: dict[tuple[str, str], list[peers.Found]] = defaultdict(list)  # by detector and stream, one a seed
    after: dict[tuple[str, str], list[float]] = defaultdict(list)  # excess loss by policy and stream
    names: list[str] = []
    for one in runs(seeds, length, folder, record):
        name = one["stream"]
        names += [name] * (name not in names)
        for detector, counts in one["alarms"].items():
            found[detector, name].append(peers.Found(**counts))
        for policy, value in one["cost"].items():
            after[policy, name].append(value)
    detectors = list(dict.fromkeys(detector for detector, _ in found))
    f1 = {  # [seeds], the mean over streams
        detector: np.array([[run.f1 for run in found[detector, name]] for name in names]).mean(axis=0)
        for detector in detectors
    }
    shown = show_alarms(found, f1, names, detectors)
    return shown | show_losses(after, names) | show_promotions()


def show_alarms(
    found: Mapping[tuple[str, str], Sequence[peers.Found]],
    f1: Mapping[str, NDArray[np.float64]],
    names: Sequence[str],
    detectors: Sequence[str],
) -> dict[str, float]:
    """The tables of alarms, and their figures."""
    peer_names = [name for name in detectors if name != "driftline" and not name.startswith("always")]
    best_peer = best(f1, peer_names)
    best_always = best(f1, [name for name in detectors if name.startswith("always")])
    defaults = [f"{name} {settings[0]:g}" for name, settings in peers.BUDGETS.items()]
    rows: list[list[str | float]] = []
    for name in ("driftline", *defaults, best_peer, best_always):
        runs = [run for stream in names for run in found[name, stream]]
        mean, half = peers.interval(f1[name].tolist())
        delays = [delay for run in runs for delay in run.delays]
        counts = (
            sum(run.hits for run in runs),
            sum(run.false for run in runs),
            sum(run.missed for run in runs),
        )
        rows.append([name, f"{mean:.3f} ± {half:.3f}", *counts, float(np.median(delays)) if delays else "-"])
    print(table(["alarms", "F1", "hits", "false", "missed", "median delay"], rows))
    print(
        "the last two are the best of River's settings (+: with our cooldown) and of always-fire, in hindsight\n"
    )
    rows = []
    for stream in names:
        runs = list(found["driftline", stream])
        each = [
            float(np.mean([run.f1 for run in found[name, stream]]))
            for name in ("driftline", *defaults, best_peer)
        ]
        delays = [delay for run in runs for delay in run.delays]
        ends = np.quantile(delays, [0.5, 0.9]) if delays else None
        rows.append([stream, *each, "-" if ends is None else f"{ends[0]:,.0f} / {ends[1]:,.0f}"])
    print(table(["F1 on", "driftline", *defaults, best_peer, "delay p50 / p90"], rows), end="\n\n")
    return {
        "f1": float(f1["driftline"].mean()),
        "f1_low": peers.interval(f1["driftline"].tolist())[0] - peers.interval(f1["driftline"].tolist())[1],
        "f1_adwin": float(f1[defaults[0]].mean()),
        "f1_best_peer": float(f1[best_peer].mean()),
        "f1_always_fire": float(f1[best_always].mean()),
    }


def show_losses(after: Mapping[tuple[str, str], Sequence[float]], names: Sequence[str]) -> dict[str, float]:
    """The table of excess losses, and their figures."""
    rows, moved = list[list[str | float]](), list[str]()
    for stream in names:
        full, continuous, periodic = (
            np.array(after[name, stream]) for name in ("full", "continuous", "periodic")
        )
        calm = "none" in stream
        ratios = (
            ["-", "-"] if calm else [f"{full.sum() / other.sum():.2f}" for other in (continuous, periodic)]
        )
        rows.append([stream, float(full.mean()), float(continuous.mean()), float(periodic.mean()), *ratios])
        moved += [] if calm else [stream]
    print(table(["excess loss on", "full", "continuous", "periodic", "of continuous", "of periodic"], rows))
    print("nats an event; where nothing changes, the loss itself\n")
    total = {name: np.array([after[name, stream] for stream in moved]).mean(axis=0) for name in POLICIES}
    figures = {}
    for name in POLICIES[1:]:
        low, high = ratio_interval(total["full"], total[name])
        ratio = float(total["full"].sum() / total[name].sum())
        print(f"excess loss of full against {name}: {ratio:.3f} (95 % from {low:.3f} to {high:.3f})")
        figures[f"excess_loss_ratio_{name}"] = ratio
        figures[f"excess_loss_ratio_{name}_high"] = high
    still = [np.mean(np.subtract(after["full", s], after["continuous", s])) for s in names if "none" in s]
    figures["loss_added_still"] = float(np.mean(still))
    print(f"where nothing changes full adds {figures['loss_added_still']:+.5f} nats to continuous")
    return figures


def ratio_interval(first: Floats, second: Floats) -> tuple[float, float]:
    """95 % bootstrap interval of sum(first) / sum(second), by drawing seeds."""
    random = np.random.default_rng(0)
    drawn = random.integers(0, len(first), (2_000, len(first)))
    low, high = np.quantile(first[drawn].sum(axis=1) / second[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def show_promotions() -> dict[str, float]:
    """The share of wrong promotions."""
    share = wrong_promotions()
    print(f"wrong promotions: {share:.4f} of {NULL_STREAMS:,} streams without a difference")
    return {"wrong_promotion_rate": share}


def main() -> None:
    """Parse the options, measure, print."""
    options = parser(__doc__ or "")
    options.add_argument("--seeds", type=int, help="how many times everything is done with other numbers")
    options.add_argument(
        "--data", type=Path, default=ROOT / "shared" / "data", help="folder of the real stream"
    )
    options.add_argument(
        "--record",
        type=Path,
        help="file that keeps each finished stream; a run that was stopped goes on from it",
    )
    given = options.parse_args()
    seeds = given.seeds or (2 if given.quick else 20)
    length = QUICK_LENGTH if given.quick else LENGTH
    finish(lambda: measure(seeds, length, given.data, given.record), given.json)


if __name__ == "__main__":
    main()

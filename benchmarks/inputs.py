"""Do moved inputs and scores that are off raise one alarm, soon; and how many alarms are there where nothing moves?

No model, no labels but for calibration: streams of 22 numbers (some missing now and then, some with few values; nine
are correlated, .5 each with each, and so are seven others), 8 categories (4 to a million values) and a score.
Driftline's detectors have their default settings: at most one false alarm in 1,000,000 events on average, over all
columns, statistics, correlations and calibration.

* **Nothing moves**: 200 streams of 20,000 rows for inputs and scores, as many for calibration.
* **One column moves** from row 16,000 on, 40 streams each: 5 % of a number are missing, a new value takes 10 % of a
  category, a number is a hundredfold, in Fahrenheit instead of Celsius, or doubled; scores are doubled. `named` is the
  share of alarms whose worst column is the right one, `delay` rows from the change to the alarm, `onset off` rows that
  the alarm's onset is off.
* **No column moves, but how they relate does**, from the same row on: one column's values come in another order. Two
  numbers become correlated (.7, .5, .3), a number leaves its group, two are far from their middle at the same time (the
  sides stay independent), or a number is larger where a category has one value. `named` is the share of alarms whose
  worst two columns are those, of the one that left its group the worst.
* **Scores become wrong** at row 26,000 of 40,000 labelled: the odds of a 1 are e times as high, or the scores say too
  much (slope 0.3).

The figures of time are microseconds of processor time a row, whoever else works on the machine; `joint_time_ratio` is
that of inputs and scores over what it is without correlations, on the same rows.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, table

NUMBERS, KINDS, ROWS, CHANGE, STEP = 22, 8, 20_000, 16_077, 500
LABELLED, WRONG = 40_000, 26_000
GROUPS = [0, 1, *range(8, 15)], [*range(15, 22)]  # of numbers that are correlated
Floats = NDArray[np.float64]
Columns = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
Moves = Callable[[Columns, np.random.Generator], None]


def stream(seed: int) -> Columns:
    """Numbers [n, 22], categories [n, 8] and scores [n] in which nothing moves. Numbers 2 to 5 are independent."""
    random = np.random.default_rng(seed)
    normal, common = random.normal(size=(ROWS, NUMBERS)), random.normal(size=(ROWS, 2))
    for factor, group in enumerate(GROUPS):
        normal[:, group] = np.sqrt(0.5) * (normal[:, group] + common[:, [factor]])
    numbers = np.exp(normal).astype(np.float32)
    numbers[:, 1] = 12 + 8 * normal[:, 1]
    numbers[:, 5] = np.where(random.random(ROWS) < 0.3, np.nan, numbers[:, 5])
    numbers[:, 6], numbers[:, 7] = random.integers(0, 3, ROWS), random.random(ROWS) < 0.1
    few = [random.integers(1, 5 + i * 20, ROWS) for i in range(KINDS - 1)]
    many = random.zipf(1.3, ROWS) % 1_000_000 + 1
    categories = np.stack([*few, many], axis=1).astype(np.int64) * 0x1E3779B97F4A7C15
    return numbers, categories, random.beta(1, 30, ROWS).astype(np.float32)


def scaled(column: int, factor: float, offset: float = 0.0) -> Moves:
    """A number times a factor, plus an offset."""

    def move(columns: Columns, random: np.random.Generator) -> None:
        columns[0][CHANGE:, column] = columns[0][CHANGE:, column] * factor + offset

    return move


def holes(columns: Columns, random: np.random.Generator) -> None:
    """A twentieth of a number is missing."""
    columns[0][CHANGE:, 0][random.random(ROWS - CHANGE) < 0.05] = np.nan


def new_value(columns: Columns, random: np.random.Generator) -> None:
    """A tenth of a category has a value that was never there."""
    columns[1][CHANGE:, 6][random.random(ROWS - CHANGE) < 0.1] = 987_654_321


def scores(columns: Columns, random: np.random.Generator) -> None:
    """All scores are doubled."""
    columns[2][CHANGE:] *= 2


def reordered(column: int, by: Callable[[Columns, np.random.Generator], Floats]) -> Moves:
    """The values of a number after the change in the order that `by` gives the rows: its distribution stays."""

    def move(columns: Columns, random: np.random.Generator) -> None:
        later = columns[0][CHANGE:, column]
        later[np.argsort(by(columns, random)[CHANGE:])] = np.sort(later)

    return move


def correlated(degree: float) -> Moves:
    """Number 3 with number 2, so much."""

    def by(columns: Columns, random: np.random.Generator) -> Floats:
        own = np.sqrt(1 - degree**2) * random.normal(size=ROWS)
        both: Floats = degree * np.log(columns[0][:, 2]) + own
        return both

    return reordered(3, by)


def far(columns: Columns, random: np.random.Generator) -> Floats:
    """Far from the middle where number 2 is, on a side of its own."""
    distance = np.abs(0.8 * np.abs(np.log(columns[0][:, 2])) + 0.3 * random.normal(size=ROWS))
    either: Floats = distance * random.choice([-1.0, 1.0], ROWS)
    return either


def by_category(columns: Columns, random: np.random.Generator) -> Floats:
    """Larger where category 0 has one of its four values."""
    larger: Floats = (columns[1][:, 0] == columns[1][:, 0].max()) + random.normal(size=ROWS)
    return larger


MOVES: dict[str, tuple[tuple[str, ...], Moves]] = {
    "missing": (("n0",), holes),
    "new_value": (("c6",), new_value),
    "hundredfold": (("n0",), scaled(0, 100.0)),
    "fahrenheit": (("n1",), scaled(1, 1.8, 32.0)),
    "doubled": (("n0",), scaled(0, 2.0)),
    "scores": (("score",), scores),
}
RELATES: dict[str, tuple[tuple[str, ...], Moves]] = {
    "correlated": (("n2", "n3"), correlated(0.7)),
    "correlated_5": (("n2", "n3"), correlated(0.5)),
    "correlated_3": (("n2", "n3"), correlated(0.3)),
    "left_group": (("n10",), reordered(10, lambda columns, random: random.normal(size=ROWS))),
    "far_together": (("n2", "n3"), reordered(3, far)),
    "by_category": (("c0", "n4"), reordered(4, by_category)),
}


def watched(
    seed: int, move: Moves | None, joint: bool = True
) -> tuple[list[tuple[int, list[str], int]], float]:
    """Of each alarm: the row, the columns, the worst first, the row of its onset; and microseconds a row."""
    from learners.batch import Batch, Schema
    from learners.drift import DriftConfig
    from learners.shift import ShiftDetector

    schema = Schema(tuple(f"n{i}" for i in range(NUMBERS)), tuple(f"c{i}" for i in range(KINDS)), "bench")
    columns = stream(seed)
    if move is not None:
        move(columns, np.random.default_rng(1_000 + seed))
    ms, nothing = np.arange(ROWS, dtype=np.int64), np.zeros(ROWS, np.float32)
    batch = Batch([f"{i}" for i in range(ROWS)], ms, ms, columns[0], columns[1], columns[2], nothing)
    config = DriftConfig() if joint else DriftConfig(joint_threshold=2.0)
    detector, found = ShiftDetector(schema, config), []
    begin = time.process_time()
    for start in range(0, ROWS, STEP):
        part = batch.slice(start, start + STEP)
        found += detector.update(part, part.served, "L1.0")
    took = (time.process_time() - begin) / ROWS * 1e6
    return [
        (int(a.alert_id.rpartition("-")[2]), [f.name for f in a.features], int(a.since_event_id))
        for a in found
    ], took


def calibrated(seed: int, odds: float, slope: float) -> tuple[list[int], float]:
    """Row of each alarm of calibration, and microseconds a row."""
    from learners.batch import Batch
    from learners.calibration import CalibrationDetector
    from learners.drift import DriftConfig

    random = np.random.default_rng(seed)
    logit = random.normal(-1.9, 1, LABELLED)
    true = logit.copy()
    true[WRONG:] = -1.9 + slope * (logit[WRONG:] + 1.9) + odds
    label = (random.random(LABELLED) < 1 / (1 + np.exp(-true))).astype(np.float32)
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    ms, none = np.arange(LABELLED, dtype=np.int64), np.zeros((LABELLED, 0), np.int64)
    batch = Batch([f"{i}" for i in range(LABELLED)], ms, ms, none.astype(np.float32), none, score, label)
    detector, found = CalibrationDetector(DriftConfig()), []
    begin = time.process_time()
    for start in range(0, LABELLED, STEP):
        part = batch.slice(start, start + STEP)
        found += detector.update(part, part.served, "L1.0")
    took = (time.process_time() - begin) / LABELLED * 1e6
    return [int(alert.alert_id.rpartition("-")[2]) for alert in found], took


def summary(
    name: str, hits: Sequence[int], extra: int, streams: int, more: Sequence[str | float]
) -> list[str | float]:
    """A row of the table: hits are delays."""
    delays = [float(np.median(hits)), float(np.max(hits))] if hits else ["-", "-"]
    return [name, len(hits) / streams, extra, *delays, *more]


def measure(null: int, streams: int) -> dict[str, float]:
    """All figures; prints the table."""
    quiet = [watched(seed, None) for seed in range(null)]
    calm = [calibrated(seed, 0.0, 1.0) for seed in range(null)]
    false, wrong = (sum(len(found) for found, _ in runs) for runs in (quiet, calm))
    print(f"nothing moves: {false} alarms of inputs and scores in {null * ROWS:,} rows of 31 columns,")
    print(f"{wrong} alarms of calibration in {null * LABELLED:,} labelled rows\n")
    figures = {"false_inputs": float(false), "false_calibration": float(wrong)}
    figures["us_inputs"] = float(np.median([took for _, took in quiet]))
    figures["us_calibration"] = float(np.median([took for _, took in calm]))
    without = [watched(seed, None, joint=False)[1] for seed in range(null)]
    figures["joint_time_ratio"] = figures["us_inputs"] / float(np.median(without))
    rows: list[list[str | float]] = []
    for name, (columns, move) in (MOVES | RELATES).items():
        runs = [watched(seed, move)[0] for seed in range(streams)]
        first = [run[0] for run in runs if run and run[0][0] > CHANGE]
        extra = sum(len(run) for run in runs) - len(first)
        delays = [row - CHANGE for row, _, _ in first]
        right = [set(worst[: len(columns)]) == set(columns) for _, worst, _ in first]
        named = float(np.mean(right)) if first else 0.0
        off = float(np.median([abs(onset - CHANGE) for _, _, onset in first])) if first else "-"
        rows.append(summary(name, delays, extra, streams, [named, off]))
        figures |= {f"{name}_found": len(first) / streams, f"{name}_extra": float(extra)}
        if delays:
            figures[f"{name}_delay"] = float(np.median(delays))
    for name, odds, slope in (("odds", 1.0, 1.0), ("slope", 0.0, 0.3)):
        alarms = [calibrated(seed, odds, slope)[0] for seed in range(streams)]
        hits = [run[0] - WRONG for run in alarms if run and run[0] > WRONG]
        extra = sum(len(run) for run in alarms) - len(hits)
        rows.append(summary(f"calibration: {name}", hits, extra, streams, ["-", "-"]))
        figures |= {f"{name}_found": len(hits) / streams, f"{name}_extra": float(extra)}
        if hits:
            figures[f"{name}_delay"] = float(np.median(hits))
    print(table(["what moves", "found", "further", "delay", "longest", "named", "onset off"], rows))
    print(
        f"\n{figures['us_inputs']:.1f} µs a row for inputs and scores, {figures['us_calibration']:.1f} for calibration"
    )
    return figures


def main() -> None:
    """Parse the options, measure, print."""
    given = parser(__doc__ or "").parse_args()
    finish(lambda: measure(10 if given.quick else 200, 5 if given.quick else 40), given.json)


if __name__ == "__main__":
    main()

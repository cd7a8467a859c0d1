"""Streams with known change points for `drift.py`: River's generators, our own simulators, and a real stream.

A stream is an array of rows with the rows at which it changes. All change points are drawn at random, so that nothing
that fires at fixed intervals can be in step with them. Every stream is a function of its seed.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, Schema

SECOND = 1_000
SMALL_DRIFTS = 50
REAL = "transactions-2018-04_07.parquet"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Drifting:
    """Rows one a second, and `changes`: (first row of the change, first row after it) of each, in order."""

    name: str
    rows: Batch
    schema: Schema
    changes: tuple[tuple[int, int], ...]

    def regimes(self) -> list[tuple[int, int]]:
        """(first row, end) of each stretch from one change to the next; the first begins with the stream."""
        starts = [0, *(begin for begin, _ in self.changes)]
        return list(zip(starts, [*starts[1:], len(self.rows)], strict=True))


def made(
    name: str, numbers: Any, label: Any, changes: Sequence[tuple[int, int]], categories: Any = None
) -> Drifting:
    """A stream of columns: numbers [n, N], labels [n], categories int64 [n, C]."""
    count = len(label)
    numbers = np.asarray(numbers, np.float32)
    coded = np.zeros((count, 0), np.int64) if categories is None else np.asarray(categories, np.int64)
    moments = np.arange(count, dtype=np.int64) * SECOND
    columns = (tuple(f"x{i}" for i in range(numbers.shape[1])), tuple(f"c{i}" for i in range(coded.shape[1])))
    rows = Batch(
        [f"e{i}" for i in range(count)], moments, moments, numbers, coded,
        np.full(count, np.nan, np.float32), np.asarray(label, np.float32),
    )  # fmt: skip
    return Drifting(name, rows, Schema(*columns, name), tuple(changes))


def points(random: np.random.Generator, count: int, length: int) -> list[int]:
    """`count` change points; the stretches between them are `length` rows, a fifth more or less, the first twice."""
    steps = random.uniform(0.8, 1.2, count + 1) * length
    steps[0] *= 2
    return [int(step) for step in np.cumsum(steps)]


def _taken(generator: Any, count: int) -> tuple[Floats, NDArray[np.int64]]:
    """The next rows of a River generator or of an iterator over one."""
    rows = list(itertools.islice(iter(generator), count))
    return np.array([list(x.values()) for x, _ in rows], np.float64), np.array([int(y) for _, y in rows])


def _sudden(name: str, parts: Sequence[Iterator[Any]], ends: Sequence[int]) -> Drifting:
    """The parts one after the other, each up to its end."""
    starts = [0, *ends[:-1]]
    drawn = [_taken(part, end - start) for part, start, end in zip(parts, starts, ends, strict=True)]
    label = np.concatenate([y for _, y in drawn])
    return made(name, np.concatenate([x for x, _ in drawn]), label, [(end, end) for end in ends[:-1]])


def sea(seed: int, length: int) -> Drifting:
    """Sudden: River's SEA with another threshold each time, a tenth of the labels turned."""
    from river.datasets import synth

    order = (2, 3, 2, 3)  # thresholds 7 and 9.5, the largest step that SEA has
    parts = [iter(synth.SEA(variant=v, noise=0.1, seed=seed * 10 + i)) for i, v in enumerate(order)]
    return _sudden("sea", parts, points(np.random.default_rng(seed), 3, length))


def _agrawal(seed: int, functions: Sequence[int]) -> list[Iterator[Any]]:
    from river.datasets import synth

    return [
        iter(synth.Agrawal(classification_function=f, perturbation=0.05, seed=seed * 10 + i))
        for i, f in enumerate(functions)
    ]


def agrawal(seed: int, length: int) -> Drifting:
    """Sudden: River's Agrawal, another of its ten functions each time."""
    random = np.random.default_rng(seed + 1_000)
    functions = random.permutation([0, 2, 3, 6]).tolist()
    return _sudden("agrawal", _agrawal(seed, functions), points(random, 3, length))


def gradual(seed: int, length: int) -> Drifting:
    """Gradual: for a quarter of a stretch, ever more rows come from the next of Agrawal's functions."""
    random = np.random.default_rng(seed + 2_000)
    width = length // 4
    parts, ends = _agrawal(seed + 500, random.permutation([0, 2, 3, 6]).tolist()), points(random, 3, length)
    total = ends[-1]
    at = np.arange(total)
    passed = [random.random(total) < np.clip((at - end) / width, 0, 1) for end in ends[:-1]]
    concept = np.sum(passed, axis=0)
    numbers, label = np.zeros((total, 9)), np.zeros(total, np.int64)
    for i, part in enumerate(parts):
        numbers[concept == i], label[concept == i] = _taken(part, int((concept == i).sum()))
    return made("gradual", numbers, label, [(end, end + width) for end in ends[:-1]])


def hyperplane(seed: int, length: int) -> Drifting:
    """Incremental: River's hyperplane stands still, then turns for a quarter of a stretch, and so on."""
    from river.datasets import synth

    random, width = np.random.default_rng(seed + 3_000), length // 4
    ends = points(random, 3, length)
    generator = synth.Hyperplane(
        n_features=8, n_drift_features=8, noise_percentage=0.05, sigma=0.0, seed=seed
    )
    rows, parts = iter(generator), []
    for start, end in itertools.pairwise([0, *ends]):
        if start:
            turned = random.permutation([-1, -1, -1, -1, 1, 1, 1, 1]).tolist()
            generator.mag_change, generator._change_direction = 1.5 / width, turned
            parts.append(_taken(rows, width))
            generator.mag_change = 0.0
        parts.append(_taken(rows, end - start - (width if start else 0)))
    numbers, label = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return made("hyperplane", numbers, label, [(end, end + width) for end in ends[:-1]])


def led(seed: int, length: int) -> Drifting:
    """Sudden: River's LED digits, is it above 4?; each time other segments change places with noise."""
    from river.datasets import synth

    ends = points(np.random.default_rng(seed + 4_000), 3, length)
    parts = [
        iter(
            synth.LEDDrift(
                n_drift_features=n, irrelevant_features=True, noise_percentage=0.1, seed=seed * 10 + i
            )
        )
        for i, n in enumerate((0, 5, 0, 7))
    ]
    stream = _sudden("led", parts, ends)
    return made("led", stream.rows.numbers, stream.rows.label > 4, stream.changes)


def recurring(seed: int, length: int) -> Drifting:
    """Recurring: two of Agrawal's functions take turns, six stretches."""
    random = np.random.default_rng(seed + 5_000)
    first, second = random.permutation([0, 2, 3, 6])[:2].tolist()
    return _sudden("recurring", _agrawal(seed + 600, [first, second] * 3), points(random, 5, length))


def _logistic(random: np.random.Generator, numbers: Floats, weights: Floats) -> NDArray[np.bool_]:
    """Labels of a rule that is not linear: weights [n, N] or [N] of the numbers, and a bend."""
    odds = 1.5 * ((numbers * weights).sum(axis=1) + 0.6 * (np.abs(numbers[:, 0]) - 0.8))
    return np.asarray(random.random(len(numbers)) < 1 / (1 + np.exp(-odds)))


def covariate(seed: int, length: int) -> Drifting:
    """Covariate only: two of eight inputs move by one standard deviation, or double; the rule stays."""
    random = np.random.default_rng(seed + 6_000)
    ends = points(random, 3, length)
    numbers = random.normal(size=(ends[-1], 8))
    for i, begin in enumerate(ends[:-1]):
        moved = random.choice(8, 2, replace=False)
        numbers[begin:, moved] = numbers[begin:, moved] * 2 if i % 2 else numbers[begin:, moved] + 1
    label = _logistic(random, numbers, random.normal(size=8) * 0.6)
    return made("covariate", numbers, label, [(end, end) for end in ends[:-1]])


def small(seed: int, length: int) -> Drifting:
    """50 small drifts: each time the rule turns by 40 degrees; the inputs stay."""
    random = np.random.default_rng(seed + 7_000)
    ends = points(random, SMALL_DRIFTS, length // 4)
    weights = random.normal(size=8)
    weights /= np.linalg.norm(weights)
    rules = []
    for _ in ends:
        rules.append(1.6 * weights)
        side = random.normal(size=8)
        side -= side @ weights * weights
        angle = np.deg2rad(40)
        weights = np.cos(angle) * weights + np.sin(angle) * side / np.linalg.norm(side)
    regime = np.searchsorted(ends, np.arange(ends[-1]), side="right")
    numbers = random.normal(size=(ends[-1], 8))
    label = _logistic(random, numbers, np.array(rules)[regime])
    return made("50 small", numbers, label, [(end, end) for end in ends[:-1]])


def still(seed: int, length: int) -> Drifting:
    """None: one of Agrawal's functions throughout."""
    functions = np.random.default_rng(seed + 8_000).permutation([0, 2, 3, 6])[:1].tolist()
    return _sudden("none", _agrawal(seed + 700, functions), [4 * length])


def daily(seed: int, length: int) -> Drifting:
    """None, but with a day: inputs and base rate follow a cycle of 2,000 rows that the model sees as a number."""
    random = np.random.default_rng(seed + 9_000)
    count = 4 * length
    phase = np.sin(2 * np.pi * np.arange(count) / 2_000)
    numbers = random.normal(size=(count, 8)) + 0.5 * phase[:, None] * (np.arange(8) < 3)
    numbers[:, 7] = phase
    label = _logistic(random, numbers, np.append(random.normal(size=7) * 0.6, 0.5))
    return made("none, daily", numbers, label, [])


MAKERS: tuple[Callable[[int, int], Drifting], ...] = (
    sea, agrawal, gradual, hyperplane, led, recurring, covariate, small, still, daily,
)  # fmt: skip


def real(folder: Path, seed: int, length: int) -> Drifting | None:
    """Real card transactions with injected changes, or None where the file is not: what its amount means changes
    (cents), then amounts come without a value for half of the terminals, then a new fraud pattern is labelled.
    """
    path = folder / REAL
    if not path.exists():
        return None
    import pyarrow.parquet as pq

    columns = pq.read_table(
        path, columns=["TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD"]
    )
    random = np.random.default_rng(seed + 10_000)
    ends = points(random, 3, length)
    start = int(random.integers(0, columns.num_rows - ends[-1]))
    part = columns.slice(start, ends[-1])
    amount = part["TX_AMOUNT"].to_numpy().astype(np.float64)
    terminal = part["TERMINAL_ID"].to_numpy().astype(np.int64)
    hour = part["TX_DATETIME"].to_numpy().astype("datetime64[h]").astype(np.int64) % 24
    label = part["TX_FRAUD"].to_numpy().astype(bool)
    at = np.arange(ends[-1])
    # Of a fraud rate of 1 % a loss says little in a few thousand rows: what is labelled is "a large payment".
    label = label | (amount > np.where(at < ends[2], 90, 40))
    amount = np.where(at >= ends[0], amount * 100, amount)
    amount = np.where((at >= ends[1]) & (terminal % 2 == 0), np.nan, amount)
    return made(
        "real",
        np.stack([amount, hour], axis=1),
        label,
        [(end, end) for end in ends[:-1]],
        terminal[:, None] + 1,
    )

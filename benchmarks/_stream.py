"""The features of a stream of transactions as of each event, its labels, and what the continuous policy served."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streams.backtest import OPEN_KEY, Options, make_settings, open_source
from streams.backtest_engine import Backtest
from streams.privacy import Pseudonymiser
from streams.rows import Rows
from streams.task import load_task

DAY_MS = 86_400_000
DELAY_DAYS = 7.0  # of every label


@dataclass(frozen=True)
class Features:
    """`names` of columns and `numbers` float32 [n, N] of accepted events in their order, `day` and `known_day` [n] from
    the first midnight, `label` [n] (NaN: never known), `served` [n]: the scores of the continuous policy.
    """

    names: tuple[str, ...]
    numbers: NDArray[np.float32]
    day: NDArray[np.float64]
    known_day: NDArray[np.float64]
    label: NDArray[np.float32]
    served: NDArray[np.float32]

    @property
    def days(self) -> float:
        """How long the stream is."""
        return float(self.day.max())


class _Keeping(Backtest):
    """A backtest that keeps the rows' numbers."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.numbers: list[NDArray[np.float32]] = []
        self.at: list[NDArray[np.int64]] = []

    def _note(self, rows: Rows) -> None:
        super()._note(rows)
        self.numbers.append(rows.numbers)
        self.at.append(rows.offset)


def features(name: str, file: Path | None, events: int, seed: int) -> Features:
    """Run the task's continuous policy over a file, or a simulation where there is none."""
    task = load_task(name)
    simulated = "" if file else "transactions"
    source, _, _ = open_source(task, file, {}, simulate=simulated, events=events, seed=seed, drift=[])
    settings = make_settings(task, source, Options(warmup=0.0))
    backtest = _Keeping(task, Pseudonymiser(OPEN_KEY), ["continuous"], source.events, settings)
    backtest.run(source.items())
    at = np.concatenate(backtest.at)
    day = (backtest.times_ms[at] - backtest.times_ms[at[0]] // DAY_MS * DAY_MS) / DAY_MS
    return Features(
        tuple(task.schema.numbers),
        np.concatenate(backtest.numbers),
        day,
        day + DELAY_DAYS,
        backtest.labels[at],
        backtest.lanes[0].scores[at],
    )

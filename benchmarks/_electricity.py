"""Streams with the character of Elec2, the electricity market of New South Wales (Harries 1999).

Elec2 itself has 45,312 half-hours from May 1996 to December 1998. A row has the date, the day of the week, the half
hour of the day, price and demand here and in the next state, and the transfer between them; the label is whether the
price is above its mean of the last 24 hours. That mean is no column, prices are set by regimes that change every few
weeks, and a label is like the one before it four times out of five: a model does well here if it follows.
"""

import numpy as np
from numpy.typing import NDArray

ROWS = 45_312
COLUMNS = ("date", "day", "period", "price", "demand", "price_next", "demand_next", "transfer")
DAY = 48  # half-hours
NEXT_STATE_FROM = 0.38  # of the rows: before, nothing is known of the next state


def stream(seed: int, rows: int = ROWS) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Columns float32 [rows, 8], all but the first two from 0 to 1, and labels 0 or 1 [rows], in time order."""
    random = np.random.default_rng(seed)
    n = rows + DAY
    at = np.arange(n)
    demand, demand_next = _demands(random, at)
    level, slope = _regimes(random, n)
    price = level + slope * demand + 0.5 * _wander(random, n, 0.45, 0.985) + _wander(random, n, 0.25, 0.7)
    spike = np.convolve(random.random(n) < 0.004, np.ones(3))[:n] > 0
    price += spike * random.exponential(1.5, n)
    price_next = np.exp(0.35 * price + 0.3 * _wander(random, n, 1.0, 0.9))
    price = np.exp(0.5 * price)
    transfer = demand - demand_next + _wander(random, n, 0.2, 0.95)
    columns = [price, demand, price_next, demand_next, transfer]
    for column in columns[2:]:
        column[: int(rows * NEXT_STATE_FROM)] = column[: int(rows * NEXT_STATE_FROM)].mean()
    total = np.cumsum(np.concatenate([[0.0], price]))
    label = price[DAY:] > (total[DAY:-1] - total[: -DAY - 1]) / DAY
    scaled = [(column - column.min()) / (column.max() - column.min()) for column in columns]
    whole = np.stack([at / n, at // DAY % 7 + 1, at % DAY / (DAY - 1), *scaled], 1)
    return whole[DAY:].astype(np.float32), label.astype(np.float32)


def _wander(random: np.random.Generator, n: int, scale: float, keep: float) -> NDArray[np.float64]:
    """An autoregressive walk [n] around 0 with this standard deviation."""
    steps, value = random.standard_normal(n) * scale * np.sqrt(1.0 - keep * keep), 0.0
    walk = np.empty(n)
    for i, step in enumerate(steps.tolist()):
        value = keep * value + step
        walk[i] = value
    return walk


def _demands(
    random: np.random.Generator, at: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Demand [n] here and in the next state: two peaks a day, quiet nights and weekends, seasons, weather."""
    hour, year = at % DAY / 2, at / (DAY * 365.25)
    shape = 0.55 * np.exp(-(((hour - 9) / 3.0) ** 2)) + 0.75 * np.exp(-(((hour - 18.5) / 2.8) ** 2))
    shape -= 0.6 * np.exp(-(((hour - 4) / 2.5) ** 2))
    week = np.where(at // DAY % 7 >= 5, -0.35, 0.05)
    season = 0.3 * np.cos(2 * np.pi * (year - 0.05)) + 0.2 * np.cos(4 * np.pi * year)
    weather = _wander(random, len(at), 0.3, 0.998)
    here = shape + week + season + weather + _wander(random, len(at), 0.2, 0.9)
    there = 0.8 * shape + week + 0.8 * season + 0.5 * weather + _wander(random, len(at), 0.3, 0.97)
    return here, there


def _regimes(random: np.random.Generator, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Level of the log price and how steeply it follows demand [n], anew after a week and 45 days on average."""
    level, slope, start = np.zeros(n), np.ones(n), 0
    while start < n:
        stop = start + int(random.exponential(45 * DAY)) + 7 * DAY
        level[start:stop], slope[start:stop] = random.normal(0.0, 0.5), np.exp(random.normal(0.0, 0.35))
        start = stop
    return level, slope

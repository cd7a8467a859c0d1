"""Card transactions with fraud, after the Fraud Detection Handbook (Le Borgne et al. 2022, chapter 3,
"Transaction data simulator"), vectorised, at any size, with a second way of committing fraud for drift.

Everything keeps the Handbook's proportions, so that its share of fraud stays: two terminals a customer; a map
that shrinks with the terminals (at 10,000 it is the Handbook's 100 by 100), so that a customer still reaches
about 78 of them; and numbers compromised a day in proportion. One thing differs: compromises begin 28 days
before the first event, so that the stream starts in the steady state that the Handbook's reaches after a
month.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.simulate import Change, Stream, concepts, under

DAYS = 90
LABEL_DELAY_MS = 7 * 86_400_000
_DAY_S = 86_400
_RADIUS = 5.0
_A_DAY = 1.94  # transactions of an average customer: U(0, 4) a day, less those outside the day
_FEWEST_CUSTOMERS = 50
_HIGH = 220.0  # scenario 1
_TERMINALS_A_DAY, _TERMINAL_DAYS = 2 / 10_000, 28  # scenario 2, as a share of all terminals
_CUSTOMERS_A_DAY, _CUSTOMER_DAYS = 3 / 5_000, 14  # scenario 3
# The second concept: thieves leave a terminal before the first report (after 7 days) can give it away.
_QUICK_DAYS = 5
_EVENING_S = 20 * 3600
# A new pattern: bursts of small amounts at fresh terminals at night.
_BURSTS_A_DAY, _BURST_SIZE = 6 / 5_000, 8
_NIGHT_S = (1 * 3600, 4 * 3600)


@dataclass
class _Table:
    """Transactions as columns [n]; `fraud` is filled in by the scenarios."""

    day: NDArray[np.int64]
    second: NDArray[np.float64]
    customer: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount: NDArray[np.float64]
    fraud: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> "_Table":
        return _Table(*(column[rows] for column in vars(self).values()))

    def add(self, other: "_Table") -> "_Table":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Table(*(np.concatenate(pair) for pair in pairs))


def generate(seed: int, events: int, changes: Sequence[Change], start_ms: int) -> Stream:
    """`events` transactions and a label for each, known 7 days later. `truth` is whether it is a fraud.

    Changes: a concept change replaces how fraud is committed (`_commit_evening`; a second change brings the
    first way back); "pattern" adds bursts (`_bursts`); "unit" gives TX_AMOUNT in cents.
    """
    rng, change_rng = np.random.default_rng(seed).spawn(2)  # up to its first change a stream is as without it
    customers = max(_FEWEST_CUSTOMERS, round(events / (DAYS * _A_DAY)))
    reach, mean, rate = _profiles(rng, customers)
    span = events / (rate.sum() * _A_DAY / 2)  # in days; two a day is the Handbook's mean rate
    days = int(span * 1.1) + 3  # more than enough: the surplus is cut off below
    table = _spend(rng, days, reach, mean, rate)
    table = _commit(rng, change_rng, table, days, span, changes)
    table = table.add(_bursts(change_rng, customers, days, span, changes))

    order = np.lexsort((table.second, table.day))[:events]
    table = table.take(order)
    times_ms = start_ms + ((table.day * _DAY_S + table.second) * 1000).astype(np.int64)
    cents = under(changes, "unit", _fraction(table, span))
    return Stream(
        id_field="TRANSACTION_ID",
        id_prefix=f"tx-{seed}",
        time_field="TX_DATETIME",
        label_field="TX_FRAUD",
        key="CUSTOMER_ID",
        times_ms=times_ms,
        columns={
            "CUSTOMER_ID": table.customer,
            "TERMINAL_ID": table.terminal,
            "TX_AMOUNT": np.where(cents, np.round(table.amount * 100), table.amount),
        },
        labelled=np.arange(events),
        known_ms=times_ms + LABEL_DELAY_MS,
        labels=table.fraud.astype(np.int64),
        truth=table.fraud.astype(np.float64),
        schedule_ms=round(span * _DAY_S * 1000),
    )


def _profiles(
    rng: np.random.Generator, customers: int
) -> tuple[list[NDArray[np.int64]], NDArray[np.float64], NDArray[np.float64]]:
    """For each customer the terminals in reach, the mean amount and the mean number of transactions a day."""
    terminals = 2 * customers
    side = terminals**0.5
    places = rng.uniform(0, side, (terminals, 2))
    by_x = np.argsort(places[:, 0])
    x, y = places[by_x].T
    reach = []
    for here_x, here_y in rng.uniform(0, side, (customers, 2)):
        low, high = np.searchsorted(x, [here_x - _RADIUS, here_x + _RADIUS])
        near = (x[low:high] - here_x) ** 2 + (y[low:high] - here_y) ** 2 < _RADIUS**2
        found = by_x[low:high][near]
        reach.append(found if len(found) else by_x[:1])  # a customer who reaches none would buy nothing
    return reach, rng.uniform(5, 100, customers), rng.uniform(0, 4, customers)


def _spend(
    rng: np.random.Generator,
    days: int,
    reach: list[NDArray[np.int64]],
    mean: NDArray[np.float64],
    rate: NDArray[np.float64],
) -> _Table:
    """Everybody's genuine transactions, not sorted."""
    counts = rng.poisson(rate, (days, len(rate)))
    day, customer = (index.repeat(counts.ravel()) for index in np.divmod(np.arange(counts.size), len(rate)))
    second = rng.normal(_DAY_S / 2, 20_000, len(day))
    inside = (second > 0) & (second < _DAY_S)
    day, customer, second = day[inside], customer[inside], second[inside]

    amount = rng.normal(mean[customer], mean[customer] / 2)
    amount = np.where(amount < 0, rng.uniform(0, 2 * mean[customer]), amount)

    sizes = np.array([len(found) for found in reach])
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    pick = (rng.random(len(day)) * sizes[customer]).astype(np.int64)
    terminal = np.concatenate(reach)[starts[customer] + pick]
    return _Table(day, second, customer, terminal, amount.round(2), np.zeros(len(day), np.bool_))


def _commit(
    rng: np.random.Generator,
    change_rng: np.random.Generator,
    table: _Table,
    days: int,
    span: float,
    changes: Sequence[Change],
) -> _Table:
    """Turns some of the transactions into frauds, by the concept of each."""
    customers = int(table.customer.max()) + 1
    terminals = int(table.terminal.max()) + 1
    concept = concepts(changes, _fraction(table, span), change_rng)
    customer_hit = _hits(rng, days, customers, _CUSTOMERS_A_DAY, _CUSTOMER_DAYS)[table.day, table.customer]
    customer_hit &= rng.random(len(table.day)) < 1 / 3
    _commit_handbook(rng, table, concept % 2 == 0, customer_hit, days, terminals)
    if concept.any():
        _commit_evening(change_rng, table, concept % 2 == 1, customer_hit, days, terminals)
    return table


def _commit_handbook(
    rng: np.random.Generator,
    table: _Table,
    mine: NDArray[np.bool_],
    customer_hit: NDArray[np.bool_],
    days: int,
    terminals: int,
) -> None:
    """The Handbook's scenarios: high amounts, compromised terminals, stolen cards with amounts times five."""
    terminal_hit = _hits(rng, days, terminals, _TERMINALS_A_DAY, _TERMINAL_DAYS)[table.day, table.terminal]
    stolen = mine & customer_hit
    table.fraud |= mine & ((table.amount > _HIGH) | terminal_hit | customer_hit)
    table.amount[stolen] = (table.amount[stolen] * 5).round(2)


def _commit_evening(
    rng: np.random.Generator,
    table: _Table,
    mine: NDArray[np.bool_],
    customer_hit: NDArray[np.bool_],
    days: int,
    terminals: int,
) -> None:
    """A concept that contradicts the Handbook's: thieves try cards with small amounts in the evening.

    High amounts are genuine, and so are amounts times five, which as many customers spend as had their cards
    stolen. Other terminals are compromised, and only for five days: what a terminal's past frauds told now
    misleads, since a terminal is clean again before its first fraud is reported.
    """
    quick = _TERMINALS_A_DAY * _TERMINAL_DAYS / _QUICK_DAYS
    terminal_hit = _hits(rng, days, terminals, quick, _QUICK_DAYS)[table.day, table.terminal]
    generous = rng.permutation(customer_hit) & mine
    fraud = mine & (terminal_hit | customer_hit)
    table.amount[generous] = (table.amount[generous] * 5).round(2)
    table.amount[fraud] = rng.uniform(0.5, 3, fraud.sum()).round(2)
    table.second[fraud] = rng.uniform(_EVENING_S, _DAY_S, fraud.sum())
    table.fraud |= fraud


def _hits(
    rng: np.random.Generator, days: int, population: int, share: float, lasts: int
) -> NDArray[np.bool_]:
    """Who is compromised when: bool [days, population]; a new `share` of the population every day, for
    `lasts` days.

    A small population would get a fraction of one a day; fractions add up until they make one.
    """
    hit = np.zeros((days, population), np.bool_)
    due = np.floor(np.arange(lasts + days + 1) * share * population + rng.random()).astype(np.int64)
    for day, new in zip(range(-lasts, days), np.diff(due).tolist(), strict=True):
        taken = rng.choice(population, min(new, population), replace=False)
        hit[max(day, 0) : max(day + lasts, 0), taken] = True
    return hit


def _bursts(
    rng: np.random.Generator, customers: int, days: int, span: float, changes: Sequence[Change]
) -> _Table:
    """The new pattern: within an hour of a night a stolen card pays small amounts at terminals never seen
    before.
    """
    due = np.floor(np.arange(days + 1) * _BURSTS_A_DAY * customers + rng.random()).astype(np.int64)
    burst_day = np.arange(days).repeat(np.diff(due))
    burst_day = burst_day[under(changes, "pattern", (burst_day / span).astype(np.float64))]
    n = len(burst_day)
    begin = rng.uniform(_NIGHT_S[0], _NIGHT_S[1] - 3600, n).repeat(_BURST_SIZE)
    card = rng.integers(0, customers, n).repeat(_BURST_SIZE)
    size = n * _BURST_SIZE
    return _Table(
        burst_day.repeat(_BURST_SIZE),
        begin + rng.uniform(0, 3600, size),
        card,
        2 * customers + np.arange(size) // 2,  # two payments at each fresh terminal
        rng.uniform(0.5, 5, size).round(2),
        np.ones(size, np.bool_),
    )


def _fraction(table: _Table, span: float) -> NDArray[np.float64]:
    fraction: NDArray[np.float64] = (table.day + table.second / _DAY_S) / span
    return fraction

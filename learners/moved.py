"""What moved, since when, by how much and how, for people: a shift's onset and its columns, the worst first.

Of a change that no column shows by itself: the pairs of columns that relate otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.drift import Affected
from learners.joint import JointWatch, Related, cells
from learners.psi import Bins
from learners.units import distance, rescaled
from learners.watched import Watched

Floats = NDArray[np.float64]

FEWEST = 100  # rows after the onset: with fewer of them, the newest so many stand for what came after it
WORTH_SAYING = 0.02  # change of a share


@dataclass(frozen=True)
class Sides:
    """The rows before (those of the reference, whose bins have `shares`) and the newest ones.

    `unseen` [newest, C]: which categories of the newest had a value that was never seen before.
    """

    bins: Bins
    shares: Floats
    before: Watched
    newest: Watched
    unseen: NDArray[np.bool_]

    @property
    def numbers(self) -> int:
        """How many of the columns are numbers; the score is the last of them."""
        return int(self.before.numbers.shape[1])

    def onset(self, column: int, by_new: bool) -> int:
        """The most likely first row of the new regime among the newest.

        It is the row from which the log likelihood ratio of the later rows, new regime against old one, is largest
        when it is summed to the end: the maximum-likelihood change point. The likelihoods are those of the column's
        bins, or of having a new value; the new regime's are those of the newer half.
        """
        half = len(self.newest) // 2
        if by_new:
            ratio = _odds(self.unseen[:, column - self.numbers], half)
        else:
            codes = self.bins.codes(self.newest.numbers, self.newest.categories)
            now = self.bins.shares(self.bins.histogram(codes[half:]))
            ratio = np.log(now[codes[:, column]] / self.shares[codes[:, column]])
        return int(np.argmax(np.cumsum(ratio[::-1])[::-1]))


def _odds(happened: NDArray[np.bool_], half: int) -> Floats:
    """Log likelihood ratio [n] of each row: as often as in the newer half, against as often as in the older one."""
    often, seldom = ((part.sum() + 0.5) / (len(part) + 1.0) for part in (happened[half:], happened[:half]))
    ratio: Floats = np.where(happened, math.log(often / seldom), math.log((1 - often) / (1 - seldom)))
    return ratio


def affected(
    sides: Sides, onset: int, columns: Sequence[int], names: Sequence[str]
) -> tuple[list[Affected], dict[str, Any]]:
    """The columns, the worst first; and for each the two distributions, ready for JSON."""
    start = min(onset, max(0, len(sides.newest) - FEWEST))
    after = sides.newest.slice(start, len(sides.newest))
    codes = sides.bins.codes(after.numbers, after.categories)
    now = sides.bins.shares(sides.bins.histogram(codes))
    found, details = [], {}
    for column in columns:
        first = int(sides.bins.starts[column])
        bins = np.flatnonzero(sides.bins.used[first : first + _width(sides, column)]) + first
        then_shares, now_shares = sides.shares[bins], now[bins]
        missing = float(sides.shares[sides.bins.missing[column]]), float(now[sides.bins.missing[column]])
        new = float(sides.unseen[start:, column - sides.numbers].mean()) if column >= sides.numbers else 0.0
        severity = max(_moved(then_shares, now_shares, len(after)), new)
        found.append(Affected(names[column], round(severity, 4), _words(sides, after, column, missing, new)))
        details[names[column]] = {
            "rows": [len(sides.before), len(after)],
            "missing": list(missing),
            "shares": [then_shares.tolist(), now_shares.tolist()],
        } | _detail(sides, after, column, new)
    return sorted(found, key=lambda each: -each.severity), details


def related(
    sides: Sides, joint: JointWatch, onset: int, block: int, names: Sequence[str]
) -> tuple[list[Affected], list[dict[str, Any]], str]:
    """Columns that relate otherwise, what has the largest part in the change first; pairs, ready for JSON; and words.

    A column is as bad as the worst of its pairs, which is told.
    """
    after = sides.newest.slice(min(onset, max(0, len(sides.newest) - FEWEST)), len(sides.newest))
    pairs = joint.related(after, block)
    places = [(pair.left, pair.right) for pair in pairs]
    both = zip(pairs, cells(sides.before, places), cells(after, places), strict=True)
    told: dict[int, Affected] = {}
    parts: dict[int, float] = {}
    details = []
    for pair, then, now in both:
        severity = round(_moved(then, now, len(after)), 4)
        for mine, other in ((pair.left, pair.right), (pair.right, pair.left)):
            parts[mine] = parts.get(mine, 0.0) + pair.share
            if mine not in told or severity > told[mine].severity:
                told[mine] = Affected(names[mine], severity, _relates(pair, names[other]))
        details.append(
            {
                "columns": [names[pair.left], names[pair.right]],
                "share": pair.share,
                "rank_correlation": [pair.before, pair.after],
                "rows": [len(sides.before), len(after)],
                "shares": [then.tolist(), now.tolist()],
            }
        )
    order = sorted(told, key=lambda each: -parts[each])
    words = "; ".join(f"{names[pair.left]} is {_relates(pair, names[pair.right])}" for pair in pairs)
    return [told[each] for each in order], details, words


def _relates(pair: Related, other: str) -> str:
    if not pair.straight:
        return f"related to {other} otherwise than before"
    return f"related to {other} with rank correlation {pair.after:.2f} instead of {pair.before:.2f}"


def _width(sides: Sides, column: int) -> int:
    ends = np.append(sides.bins.starts, sides.bins.total)
    return int(ends[column + 1] - ends[column])


def _moved(before: Floats, after: Floats, rows: int) -> float:
    """Total variation distance, less what a sample of so many rows has by chance."""
    chance = np.sqrt(2.0 * before * (1.0 - before) / (math.pi * rows)).sum() / 2.0
    return float(max(0.0, np.abs(after - before).sum() / 2.0 - chance))


def _detail(sides: Sides, after: Watched, column: int, new: float) -> dict[str, Any]:
    if column >= sides.numbers:
        return {"new_values": new}
    then, now = (_known(rows, column) for rows in (sides.before, after))
    ks = distance(then, now) if len(then) and len(now) else None
    return {"edges": sides.bins.edges(column), "kolmogorov_smirnov": ks}


def _known(rows: Watched, column: int) -> NDArray[np.float32]:
    values = rows.numbers[:, column]
    return values[~np.isnan(values)]


def _words(sides: Sides, after: Watched, column: int, missing: tuple[float, float], new: float) -> str:
    """How the column moved: the most telling first."""
    said = []
    if column < sides.numbers:
        then, now = _known(sides.before, column), _known(after, column)
        if (change := rescaled(then, now)) is not None:
            said.append(change.words)
        elif len(then) and len(now) and distance(then, now) > 0.1:
            said.append(f"{np.median(now):.3g} in the middle instead of {np.median(then):.3g}")
    elif new > WORTH_SAYING:
        said.append(f"a value never seen before in {new:.1%} of events")
    if abs(missing[1] - missing[0]) > WORTH_SAYING:
        said.append(f"missing in {missing[1]:.1%} of events instead of {missing[0]:.1%}")
    return " and ".join(said) or "distributed otherwise than before"

"""What the columns of a sample probably are: id, time, key, label, number or category. For a person to check.

`profile` measures each column once; every guess after that is a small rule over names and measurements. Names
are compared word by word ("CUSTOMER_ID" is customer, id), so that a word inside another one does not count.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ID_WORDS = _vocabulary("id ids key uuid guid code hash token")
_COUNTED = _vocabulary("no nr num number")  # they end an identity only after a person or thing
_PEOPLE = _vocabulary(
    "user customer client account card member player patient driver rider passenger visitor session device "
    "person subscriber cardholder household employee student payer sender email phone ip"
)
_THINGS = _vocabulary(
    "item product terminal merchant store shop article sku campaign ad advertiser creative page station "
    "sensor machine host server vehicle route restaurant seller payee receiver recipient publisher channel"
)
_LABELS = _vocabulary(
    "label target y click clicked fraud fraudulent converted conversion churn churned default defaulted "
    "outcome bought purchase purchased complained complaint failed failure anomaly attack spam won cancelled "
    "liked"
)
_TIMES = _vocabulary("time timestamp ts date datetime at epoch created when dt")
_AMOUNTS = _vocabulary("amount price value fare total cost qty quantity duration distance amt sum spend")
_DAYS = ("%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%d/%b/%Y")
_CLOCKS = (" %H:%M:%S", " %H:%M", " %H:%M:%S.%f", ":%H:%M:%S %z", " %I:%M:%S %p", " %I:%M %p", "")
_PATTERNS = tuple(day + clock for day in _DAYS for clock in _CLOCKS)
_TIME_SAMPLE = 200  # values that a time format must parse


@dataclass(frozen=True)
class Column:
    """One column. `kind` is moment, integer, number, boolean, text or other; NaN counts as null."""

    name: str
    kind: str
    rows: int
    nulls: int
    distinct: int
    low: float
    high: float
    longest: int  # characters of the longest text

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the name, in lower case."""
        return words(self.name)

    @property
    def repeats(self) -> bool:
        """Whether its values come again often enough to keep features for them."""
        return 1 < self.distinct <= 0.9 * (self.rows - self.nulls)


def words(name: str) -> tuple[str, ...]:
    """The words of a name in any style: "userId2", "USER_ID" and "user-id" all begin user, id."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[a-z]+|\d+", spaced.lower()))


def profile(sample: pa.Table) -> list[Column]:
    """Every column of the sample, measured."""
    return [_column(name, sample.column(at)) for at, name in enumerate(sample.column_names)]


def _column(name: str, values: pa.ChunkedArray) -> Column:
    values = _plain(values)
    kind = _kind(values.type)
    nulls = values.null_count
    if pa.types.is_floating(values.type):
        nulls += int(pc.sum(pc.is_nan(values)).as_py() or 0)
    low = high = math.nan
    longest, distinct = 0, 0
    if kind != "other" and nulls < len(values):
        distinct = pc.count_distinct(values).as_py() - (1 if nulls > values.null_count else 0)
        if kind in ("integer", "number"):
            span = pc.min_max(values)
            low, high = float(span["min"].as_py()), float(span["max"].as_py())
        elif kind == "text":
            longest = pc.max(pc.utf8_length(values)).as_py()
    return Column(name, kind, len(values), nulls, distinct, low, high, longest)


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionaries and decimals."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.float64()) if pa.types.is_decimal(values.type) else values


def _kind(dtype: Any) -> str:
    is_a = pa.types
    checks: dict[Callable[[Any], bool], str] = {
        is_a.is_boolean: "boolean", is_a.is_integer: "integer", is_a.is_floating: "number",
        is_a.is_timestamp: "moment", is_a.is_date: "moment",
        is_a.is_string: "text", is_a.is_large_string: "text",
    }  # fmt: skip
    return next((kind for check, kind in checks.items() if check(dtype)), "other")


def identity(column: Column) -> int:
    """How much a column looks like the identity of a person (most) or thing; 0 means not at all."""
    said = column.words
    if not said or column.kind not in ("integer", "text"):
        return 0
    person, thing = bool(_PEOPLE & {*said}), bool(_THINGS & {*said})
    last = next((word for word in reversed(said) if not word.isdigit()), "")
    ends = last in _ID_WORDS or (last in _COUNTED and (person or thing))
    if not ends and (said[-1] not in _PEOPLE | _THINGS or column.kind == "integer"):
        return 0
    return 4 * ends + 2 * person + thing


def is_small_thing(column: Column) -> bool:
    """Whether it identifies one of at most a thousand things, which a model may know one by one."""
    return identity(column) > 0 and column.distinct <= 1000 and not _PEOPLE & {*column.words}


def time_format(column: Column, values: pa.ChunkedArray) -> str:
    """The task file's time format that all values of the column have, or nothing."""
    if column.kind == "moment":
        return "iso8601"
    if column.kind in ("integer", "number") and _TIMES & {*column.words} and column.nulls == 0:
        if 1e8 <= column.low <= column.high < 5e9:
            return "epoch_s"
        return "epoch_ms" if 1e11 <= column.low <= column.high < 5e12 else ""
    if column.kind != "text" or column.nulls == column.rows or column.longest > 64:
        return ""
    texts = values.drop_null().slice(0, _TIME_SAMPLE).to_pylist()
    if all(_parses(datetime.fromisoformat, text) for text in texts):
        return "iso8601"
    fits = [p for p in _PATTERNS if all(_parses(_reader(p), text) for text in texts)]
    return max(fits, key=lambda p: _order([_reader(p)(text) for text in texts]), default="")


def _reader(pattern: str) -> Callable[[str], datetime]:
    return lambda text: _utc(datetime.strptime(text, pattern))  # noqa: DTZ007  `_utc` gives it a zone


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _parses(read: Callable[[str], datetime], text: str) -> bool:
    try:
        read(text)
    except ValueError:
        return False
    return True


def _order(times: list[datetime]) -> tuple[int, float]:
    """More for rows in time order and close together, which tells 02/01 from 01/02."""
    return sum(a <= b for a, b in pairwise(times)), -(max(times) - min(times)).total_seconds()


def guess_time(sample: pa.Table, columns: Sequence[Column]) -> tuple[str, str]:
    """Name and format of the event's time; both empty if no column has times."""
    best, found = (0, 0), ("", "")
    for column in columns:
        style = "" if column.nulls else time_format(column, sample[column.name])
        score = (1 + bool(_TIMES & {*column.words}), column.distinct)
        if style and score > best:
            best, found = score, (column.name, style)
    return found


def guess_id(columns: Sequence[Column]) -> str:
    """The column that differs in every row; its name must say id unless the sample is long enough."""
    unique = [
        c for c in columns
        if c.kind in ("integer", "text") and 0 < c.distinct == c.rows and c.longest <= 256
    ]  # fmt: skip
    named = [c for c in unique if _ID_WORDS & {*c.words}]
    # Whole numbers without a gap are a count of rows; other numbers that never repeat may be anything.
    trusted = [c for c in unique if c.rows >= 50 and (c.kind == "text" or c.high - c.low == c.rows - 1)]
    return next((c.name for c in (*named, *trusted)), "")


def guess_label(columns: Sequence[Column]) -> str:
    """The column of zeros and ones that is most likely the truth; empty if there is none."""
    binary = [c for c in columns if is_binary(c)]
    named = [c for c in binary if _LABELS & {*c.words}]
    return max(named or binary[-1:], key=lambda c: len(_LABELS & {*c.words}), default=_NOTHING).name


def is_binary(column: Column) -> bool:
    """Whether it has nothing but zeros and ones, or true and false."""
    bits = (
        column.kind in ("integer", "number")
        and {column.low, column.high} <= {0.0, 1.0}
        and column.distinct <= 2
    )
    return column.nulls < column.rows and (column.kind == "boolean" or bits)


def guess_entities(columns: Sequence[Column]) -> list[str]:
    """Columns to keep features for, the best key first: at most three."""
    found = [c for c in columns if identity(c) and c.repeats]
    found.sort(key=lambda c: (identity(c), c.distinct), reverse=True)
    complete = [c for c in found if c.nulls == 0]
    if not complete:  # any category without nulls can be the key, the one with most values first
        texts = [c for c in columns if c.kind == "text" and c.repeats and c.nulls == 0]
        complete = [max(texts, key=lambda c: c.distinct)] if texts else []
    names = [c.name for c in (*complete[:1], *found) if c.longest <= 256]
    return list(dict.fromkeys(names))[:3]


def guess_values(columns: Sequence[Column]) -> list[str]:
    """The number columns that windows are most likely wanted for: at most two, amounts first."""
    varied = [c for c in columns if c.distinct > 2]
    return [
        c.name
        for c in sorted(varied, key=lambda c: (bool(_AMOUNTS & {*c.words}), c.distinct), reverse=True)[:2]
    ]


def leaks(sample: pa.Table, column: Column, label: Column) -> bool:
    """Whether each value of `column` has always one label, over at least ten of both: it tells the answer."""
    if column.kind == "other" or (column.distinct > 20 and column.kind == "text"):
        return False
    pair = pa.table(
        {"value": _plain(sample[column.name]), "label": _plain(sample[label.name]).cast(pa.float64())}
    )
    pair = pair.filter(pc.and_(pc.is_valid(pair["value"]), pc.is_valid(pair["label"])))
    ones = int(pc.sum(pair["label"]).as_py() or 0)
    if min(ones, pair.num_rows - ones) < 10:
        return False
    if column.distinct <= 20:
        groups = pair.group_by("value").aggregate([("label", "min"), ("label", "max")])
        return bool(pc.all(pc.equal(groups["label_min"], groups["label_max"])).as_py())
    if column.kind == "moment":
        return False
    sides = (
        pair.group_by("label").aggregate([("value", "min"), ("value", "max")]).sort_by("label").to_pylist()
    )
    return bool(
        sides[0]["value_max"] < sides[1]["value_min"] or sides[1]["value_max"] < sides[0]["value_min"]
    )


_NOTHING = Column("", "other", 0, 0, 0, math.nan, math.nan, 0)

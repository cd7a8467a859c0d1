"""The report's other plots: latency, rate, and the shift of inputs."""

import math
from html import escape

from streams.report.data import History, Latency
from streams.report.svg import (
    Frame,
    Ticks,
    clip_path,
    cross,
    event_axis,
    hover,
    hover_data,
    label,
    line,
    marker_line,
    nice_ticks,
    picture,
    tag,
    x_axis,
    y_axis,
)
from streams.report.words import milliseconds, moment, number

HEAT_COLUMNS, HEAT_ROW = 14, 22
NAME = 84  # width of a percentile's name
HEAT_STEPS = (0.1, 0.2, 0.5, 1.0)  # PSI; 0.2 is what is commonly called a shift


def latency_chart(history: History, width: int) -> str:
    """How long events waited, on a logarithmic axis, with the percentiles."""
    bins, latency = history.histogram, history.archived
    assert latency is not None
    low, high = math.log10(bins[0][0]), math.log10(bins[-1][1])
    low, high = math.floor(low * 2) / 2, max(math.ceil(high * 2) / 2, low + 1)
    narrow = width < 600
    most = max(count for _, _, count in bins)
    frame = Frame(width, 66, width - 12, 76, 76 + (130 if narrow else 170), low, high, 0, most * 1.05)
    decades = [(float(d), _power(d)) for d in range(math.ceil(low), math.floor(high) + 1)]
    ticks: Ticks = decades
    if not narrow or len(decades) < 3:
        ticks = sorted(
            decades
            + [
                (d + math.log10(3), milliseconds(3 * 10.0**d))
                for d in range(math.floor(low), math.ceil(high))
            ]
        )
        ticks = [tick for tick in ticks if low <= tick[0] <= high]
    parts = [
        y_axis(frame, nice_ticks(0, frame.y1, 4), "events"),
        x_axis(frame, ticks, "from Kafka to the archive (logarithmic)"),
    ]
    for start, stop, count in bins:
        x, end, y = frame.x(math.log10(start)), frame.x(math.log10(stop)), frame.y(count)
        name = tag("title", escape(f"{count:,} events: {milliseconds(start)} to {milliseconds(stop)}"))
        parts.append(
            tag("rect", name, x=x + 0.5, y=y, width=end - x - 1, height=frame.bottom - y, class_="bar")
        )
    return picture(
        width,
        frame.bottom + 46,
        "How long events took from Kafka to the archive",
        *parts,
        *_quantiles(frame, latency),
    )


def _quantiles(frame: Frame, latency: Latency) -> list[str]:
    """The percentiles, each named on a row of its own, since they may be equal; no line runs through a name."""
    marks = [("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99)]
    places = [frame.x(math.log10(max(value, 1))) for _, value in marks]
    end = places[0] > frame.left + NAME  # all names stand left of their lines, the last one on top
    lines, names = [], []
    for i, ((name, value), x) in enumerate(zip(marks, places, strict=True)):
        y = 24 + (len(marks) - 1 - i if end else i) * 17
        left = end or x > frame.right - NAME
        lines.append(tag("line", x1=x, x2=x, y1=y - 10, y2=frame.bottom, class_="quantile"))
        place, anchor = (x - 5, "end") if left else (x + 5, "start")
        names.append(label(place, y, f"{name} {milliseconds(value)}", "quantile-text", anchor))
    return lines + names


def _power(decade: int) -> str:
    return milliseconds(10.0**decade)


def rate_chart(history: History, width: int) -> str:
    """Events and predictions a second over the run's own clock."""
    end = history.rate[-1][0] + (history.rate[1][0] if len(history.rate) > 1 else 1.0)
    most = max(max(a, b) for _, a, b in history.rate) or 1.0
    narrow = width < 600
    frame = Frame(width, 66, width - 12, 30, 30 + (130 if narrow else 170), 0, end, 0, most * 1.08)
    clip = f"clip-rate{width}"
    step = [
        (x, a, b)
        for i, (x, a, b) in enumerate(history.rate)
        for x in (x, history.rate[i + 1][0] if i + 1 < len(history.rate) else end)
    ]
    area = " ".join(f"{frame.x(x):.1f},{frame.y(a):.1f}" for x, a, _ in step)
    area += f" {frame.x(end):.1f},{frame.bottom:.1f} {frame.left:.1f},{frame.bottom:.1f}"
    unit, text = ("min", 60.0) if end > 300 else ("s", 1.0)
    ticks = [(v * text, t) for v, t in nice_ticks(0, end / text, 4 if narrow else 8)]
    return picture(
        width, frame.bottom + 46, "Events received and predictions made each second",
        tag("defs", clip_path(frame, clip)),
        y_axis(frame, nice_ticks(0, frame.y1, 4), "events a second"),
        tag("polygon", points=area, class_="area"),
        line(frame, [(x, b) for x, _, b in step], "predicted", clip),
        x_axis(frame, ticks, f"time since the first event ({unit})"),
        cross(frame),
        **hover(frame, "rate"),
    )  # fmt: skip


def rate_data(history: History) -> str:
    """See hover_data."""
    xs, received, predicted = zip(*history.rate, strict=True)
    return hover_data(
        "rate", xs, [f"after {x:g} s" for x in xs], {"received": list(received), "predicted": list(predicted)}
    )


def heat_level(psi: float) -> int:
    """0 (stable) to 4 (another world)."""
    return sum(psi >= step for step in HEAT_STEPS)


def heat_chart(history: History, width: int) -> str:
    """A row a column, darker where it moved more; the columns that moved most come first."""
    narrow = width < 600
    worst: dict[str, float] = {}
    for _, column, value in history.psi:
        worst[column] = max(worst.get(column, 0.0), value)
    columns = sorted(worst, key=lambda c: (-worst[c], c))[:HEAT_COLUMNS]
    times = [ms for ms, _, _ in history.psi] + list(history.span or ())
    times += [history.drift_ms] if history.drift_ms is not None else []
    left, bottom = (118 if narrow else 220), 14 + HEAT_ROW * len(columns)
    frame = Frame(width, left, width - 46, 14, bottom, min(times), max(times))
    count = 24 if narrow else 72
    cells: dict[tuple[int, int], float] = {}
    for ms, column, value in history.psi:
        if column in columns:
            at = (
                columns.index(column),
                min(int((ms - frame.x0) / ((frame.x1 - frame.x0) or 1) * count), count - 1),
            )
            cells[at] = max(cells.get(at, 0.0), value)
    step = (frame.right - frame.left) / count
    parts = []
    for row, column in enumerate(columns):
        y = frame.top + row * HEAT_ROW
        short = column if len(column) <= (16 if narrow else 30) else column[: 15 if narrow else 29] + "…"
        parts.append(
            tag("rect", x=left, y=y + 2, width=frame.right - left, height=HEAT_ROW - 4, class_="lane")
        )
        parts.append(tag("g", tag("title", escape(column)), label(left - 6, y + 15, short, "tick", "end")))
        parts.append(label(frame.right + 6, y + 15, f"{worst[column]:.2f}", "tick"))
    for (row, slot), value in cells.items():
        when = moment(int(frame.x0 + (slot + 0.5) / count * (frame.x1 - frame.x0)))
        name = tag("title", escape(f"{columns[row]}: PSI {number(value)} around {when}"))
        y = frame.top + row * HEAT_ROW + 2
        parts.append(
            tag(
                "rect",
                name,
                x=left + slot * step,
                y=y,
                width=step - 0.6,
                height=HEAT_ROW - 4,
                class_=f"heat{heat_level(value)}",
            )
        )
    if history.drift_ms is not None:
        parts.append(marker_line(frame, history.drift_ms, "drift-line"))
    parts.append(label(frame.right + 6, 8, "max", "tick"))
    parts.append(event_axis(frame, bottom + 2))
    return picture(width, bottom + 50, "Shift of each input column over event time (PSI)", *parts)

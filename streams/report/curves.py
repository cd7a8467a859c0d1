"""The report's main plot: the metric of each arm over event time, and below it what happened when."""

from collections.abc import Sequence
from html import escape

from streams.report.data import CHAMPION, CONTINUOUS, FROZEN, METRICS, SERVED, Entry, History, Points
from streams.report.svg import (
    Frame,
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
    spread,
    tag,
    y_axis,
)
from streams.report.words import moment

MOST_POINTS = 360  # of a curve; a screen has not many more columns
LANE = 27  # height of a lane below the curves
PILL = 58  # width that a number in a lane may take
ARM_NAMES = {
    CHAMPION: "swapped (the live model)",
    SERVED: "as served (before it saw the newest labels)",
    CONTINUOUS: "continuous (first model, still learning)",
    FROZEN: "frozen (as before the drift)",
}
SHORT_NAMES = {CHAMPION: "swapped", SERVED: "as served", CONTINUOUS: "continuous", FROZEN: "frozen"}


def arm_class(arm: str) -> str:
    """Style of an arm's line; all challengers share one."""
    return arm if arm in ARM_NAMES else "challenger"


def arm_order(history: History) -> list[str]:
    """Arms as they are drawn, later ones on top: challengers, swapped (thick), continuous and frozen (thin)."""
    challengers = sorted(arm for arm in history.curves if arm not in ARM_NAMES)
    return challengers + [arm for arm in ARM_NAMES if arm in history.curves]


def shown_points(history: History) -> dict[str, Points]:
    """Each arm's curve at the same, not too many, times."""
    times = sorted({t for points in history.curves.values() for t, _ in points})
    keep = {*times[:: -(-len(times) // MOST_POINTS)], times[-1]}
    curves = {arm: sorted(dict(history.curves[arm]).items()) for arm in arm_order(history)}
    return {arm: [(t, v) for t, v in points if t in keep] for arm, points in curves.items()}


def curves_chart(history: History, width: int) -> str:
    """The metric over event time with drift and swaps marked; below it alarms, decisions and who served."""
    curves = shown_points(history)
    frame = _frame(history, curves, width)
    lanes = _lanes(history, frame)
    bottom = frame.bottom + 10 + LANE * len(lanes)
    title = METRICS[history.metric]
    if history.window and not frame.narrow:
        title += f", over the last {history.window:,} labelled events"
    clip = f"clip{width}"
    parts = [
        tag("defs", clip_path(frame, clip)),
        y_axis(frame, nice_ticks(frame.y0, frame.y1, 5), title, above=30),
        *(_lane_ground(frame, i) for i in range(len(lanes))),
        *_marks(history, frame, bottom - 2),
        *(line(frame, points, arm_class(arm), clip) for arm, points in curves.items()),
        *_end_labels(frame, curves),
        *(_lane(frame, i, name, content) for i, (name, content) in enumerate(lanes)),
        event_axis(frame, bottom),
        cross(frame, bottom),
    ]
    name = f"{METRICS[history.metric]} over event time, by arm, with drift, alarms and swaps"
    return picture(width, bottom + 46, name, *parts, **hover(frame, "curves"))


def _frame(history: History, curves: dict[str, Points], width: int) -> Frame:
    main = sorted(v for arm, points in curves.items() if arm in ARM_NAMES for _, v in points)
    main = main or sorted(v for points in curves.values() for _, v in points)
    low, high = main[len(main) // 50], main[-1]  # the very first points rest on few events and swing widely
    pad = max((high - low) * 0.08, 0.005)
    times = [t for points in curves.values() for t, _ in points] + [e.event_ms for e in history.entries]
    times += [history.drift_ms] if history.drift_ms is not None else []
    narrow = width < 600
    right, height = width - (8 if narrow else 128), (230 if narrow else 330)
    return Frame(width, 66, right, 50, 50 + height, min(times), max(times), low - pad, high + pad)


def _marks(history: History, frame: Frame, bottom: float) -> list[str]:
    """The drift and each swap: a line through everything, named above the plot where there is room.

    The drift's name stands before its line, because the swaps come after it.
    """
    marks = [(swap.event_ms, "swap", f"swap to {swap.row['lineage']}") for swap in history.swaps]
    if history.drift_ms is not None:
        marks.append((history.drift_ms, "drift", "drift" if frame.narrow else "drift injected"))
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for ms, kind, text in sorted(marks, key=lambda mark: mark[1]):  # the drift's name has the first choice
        parts.append(marker_line(frame, ms, f"{kind}-line", bottom))
        x, long = frame.x(ms), 7.0 * len(text)
        after, before = (x + 2, x + 2 + long, "start"), (x - 2 - long, x - 2, "end")
        for start, end, anchor in (before, after) if kind == "drift" else (after, before):
            fits = start >= frame.left - 8 and end <= frame.width
            if fits and not any(start < stop + 4 and end > begin - 4 for begin, stop in taken):
                taken.append((start, end))
                parts.append(
                    label(start if anchor == "start" else end, frame.top - 7, text, f"{kind}-text", anchor)
                )
                break
    return parts


def _end_labels(frame: Frame, curves: dict[str, Points]) -> list[str]:
    """Name and last value of the compared arms beside their ends; on a phone the legend has to do."""
    ends = {arm: points[-1] for arm, points in curves.items() if arm in ARM_NAMES and points}
    if frame.narrow or not ends:
        return []
    places = spread([frame.y(v) for _, v in ends.values()], 17, frame.top + 8, frame.bottom)
    return [
        label(frame.right + 8, y + 4, f"{SHORT_NAMES[arm]} {ends[arm][1]:.3f}", f"end {arm}")
        for arm, y in zip(ends, places, strict=True)
    ]


def _lanes(history: History, frame: Frame) -> list[tuple[str, str]]:
    """(name, markup around y = 0) of the lanes below the curves; only those that have something to show."""
    decisions = [entry for entry in history.entries if not entry.is_alert]
    lanes = [
        ("alarms", _pills(history.alerts, frame, "alarm")),
        ("decisions", _pills(decisions, frame, "decision")),
        ("serving", _bands(history, frame)),
    ]
    return [(name, content) for name, content in lanes if content]


def _lane_ground(frame: Frame, i: int) -> str:
    place = {"x": frame.left, "y": frame.bottom + 12 + i * LANE}
    return tag("rect", **place, width=frame.right - frame.left, height=LANE - 4, class_="lane")


def _lane(frame: Frame, i: int, name: str, content: str) -> str:
    middle = frame.bottom + 10 + (i + 0.5) * LANE
    group = tag("g", content, transform=f"translate(0 {middle:g})")
    return group + label(frame.left - 6, middle + 4, name, "tick", "end")


def _pills(entries: Sequence[Entry], frame: Frame, kind: str) -> str:
    """Numbers that lead to the timeline; those too close to tell apart share a pill."""
    groups: list[list[Entry]] = []

    def place(entry: Entry) -> float:
        return min(max(frame.x(entry.event_ms), frame.left + PILL / 2), frame.right - PILL / 2)

    for entry in entries:
        if groups and place(entry) - place(groups[-1][0]) < PILL:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    parts = []
    for group in groups:
        numbers = [str(entry.number) for entry in group]
        text = ", ".join(numbers) if len(numbers) <= 2 else f"{numbers[0]}\u2013{numbers[-1]}"
        class_ = f"pill {kind}" + " swap" * any(entry.is_swap for entry in group)
        width = 13 + 6.2 * len(text)
        x = place(group[0])
        name = f"{len(group)} of the timeline, from {moment(group[0].event_ms)}"
        pill = tag("rect", x=x - width / 2, y=-9, width=width, height=18, rx=9, class_=class_)
        link = f"#entry-{numbers[0]}"
        parts.append(tag("a", tag("title", name), pill, label(x, 4, text, "pill-text", "middle"), href=link))
    return "".join(parts)


def _bands(history: History, frame: Frame) -> str:
    """The lineage that served, band by band, within the plot."""
    names = [lineage.name for lineage in history.lineages]
    parts = []
    for start, stop, lineage in history.serving:
        x, end = max(frame.x(start), frame.left), min(frame.x(stop), frame.right)
        if end <= x:
            continue
        name = tag("title", escape(f"{lineage} served from {moment(start)} to {moment(stop)}"))
        class_ = f"band band{names.index(lineage) % 4}"
        parts.append(tag("rect", name, x=x, y=-LANE / 2 + 2, width=end - x, height=LANE - 4, class_=class_))
        if end - x > 10 + 7 * len(lineage):
            parts.append(label((x + end) / 2, 4, lineage, "band-text", "middle"))
    return "".join(parts)


def curves_data(history: History) -> str:
    """See hover_data; most interesting arm first."""
    curves = {arm: dict(points) for arm, points in shown_points(history).items()}
    times = sorted({t for points in curves.values() for t in points})
    names = [*ARM_NAMES, *(arm for arm in curves if arm not in ARM_NAMES)]
    series = {SHORT_NAMES.get(n, n): [curves[n].get(t) for t in times] for n in names if n in curves}
    return hover_data("curves", times, [moment(t) for t in times], series)

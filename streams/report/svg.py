"""The few SVG pieces that the report's plots are made of. Every function returns markup and escapes its text."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from streams.report.words import axis_time, moment

WIDE, NARROW = 1040, 360  # the pictures' widths; style.py shows the one that fits
Ticks = list[tuple[float, str]]
DAY_S = 86_400
NICE_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, DAY_S)


def tag(name: str, *content: str, **attributes: object) -> str:
    """An element; content is markup. Attribute names: `class_` is class, other underscores are hyphens."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-") if key != "viewBox" else key}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{pairs}>{''.join(content)}</{name}>" if content else f"<{name}{pairs}/>"


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def label(x: float, y: float, text: str, class_: str = "", anchor: str = "start", **more: object) -> str:
    """Text at a point; `anchor` start, middle or end."""
    return tag("text", escape(text), x=x, y=y, class_=class_ or None, text_anchor=anchor, **more)


@dataclass(frozen=True)
class Frame:
    """Where a plot lies in its picture, and the values at its edges: value (x0, y0) is at (left, bottom)."""

    width: float
    left: float
    right: float
    top: float
    bottom: float
    x0: float
    x1: float
    y0: float = 0.0
    y1: float = 1.0

    @property
    def narrow(self) -> bool:
        """A picture for a phone."""
        return self.width < 600

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        return self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1) * (self.bottom - self.top)


def y_axis(frame: Frame, ticks: Ticks, title: str, above: float = 10) -> str:
    """Grid lines and their values; the title stands above the plot, where it is read first."""
    parts = [label(0, frame.top - above, title, "axis-title")]
    for value, text in ticks:
        y = frame.y(value)
        parts.append(tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"))
        parts.append(label(frame.left - 6, y + 4, text, "tick", "end"))
    return "".join(parts)


def x_axis(frame: Frame, ticks: Ticks, title: str, bottom: float | None = None) -> str:
    """Values below the plot, and the title under them."""
    bottom = frame.bottom if bottom is None else bottom
    parts = [tag("line", x1=frame.left, x2=frame.right, y1=bottom, y2=bottom, class_="axis")]
    for value, text in ticks:
        x = frame.x(value)
        parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="axis"))
        parts.append(label(x, bottom + 18, text, "tick", "middle"))
    parts.append(label((frame.left + frame.right) / 2, bottom + 38, title, "axis-title", "middle"))
    return "".join(parts)


def line(frame: Frame, points: Iterable[tuple[float, float]], class_: str, clip: str) -> str:
    """A line through points, cut off at the edges of the clip path `clip`."""
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return tag("polyline", points=path, class_=f"line {class_}", clip_path=f"url(#{clip})")


def clip_path(frame: Frame, name: str) -> str:
    """The plot's own rectangle, for `line`."""
    width, height = frame.right - frame.left, frame.bottom - frame.top
    return tag("clipPath", tag("rect", x=frame.left, y=frame.top, width=width, height=height), id=name)


def marker_line(frame: Frame, x: float, class_: str, bottom: float | None = None) -> str:
    """A vertical line through the plot at a value of x."""
    at = frame.x(x)
    return tag("line", x1=at, x2=at, y1=frame.top, y2=bottom or frame.bottom, class_=class_)


def nice_ticks(low: float, high: float, count: int) -> Ticks:
    """About `count` round values between low and high."""
    step = _nice((high - low) / max(count, 1) or 1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    values = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value:,.{digits}f}") for value in values]


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def time_ticks(low_ms: float, high_ms: float, count: int, text: Callable[[float, float], str]) -> Ticks:
    """About `count` round times (UTC) between two, as `text(ms, span_ms)` writes them."""
    span = (high_ms - low_ms) / 1000
    wanted = span / max(count, 1)
    step: float = next((s for s in NICE_SECONDS if s >= wanted), 0)
    if not step:
        step = DAY_S * max(1, round(_nice(wanted / DAY_S)))
    first = math.ceil(low_ms / 1000 / step)
    values = [i * step * 1000.0 for i in range(first, math.floor(high_ms / 1000 / step) + 1)]
    return [(value, text(value, high_ms - low_ms)) for value in values]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, at least `gap` apart where there is room, within low and high."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    at = low - gap
    for i in order:
        at = places[i] = max(wanted[i], at + gap)
    at = high + gap
    for i in reversed(order):  # what was pushed out at the end is pushed back
        at = places[i] = min(places[i], at - gap)
    return places


def picture(width: float, height: float, title: str, *content: str, **attributes: object) -> str:
    """An SVG that scales with the page and tells its title to a screen reader."""
    name = tag("title", escape(title))
    return tag(
        "svg", name, *content, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, **attributes
    )


def both(draw: Callable[[int], str]) -> str:
    """The drawing for a wide page and the one for a phone."""
    return tag("div", draw(WIDE), class_="wide") + tag("div", draw(NARROW), class_="narrow")


def event_axis(frame: Frame, bottom: float) -> str:
    """The axis of event time, with the day or days in its title."""
    ticks = time_ticks(frame.x0, frame.x1, 3 if frame.narrow else 8, axis_time)
    first, last = (moment(int(ms))[:10] for ms in (frame.x0, frame.x1))
    return x_axis(
        frame, ticks, f"event time (UTC), {first if first == last else f'{first} to {last}'}", bottom
    )


def hover(frame: Frame, data: str) -> dict[str, object]:
    """Attributes of a picture with which the page's script turns a place into a value of `hover_data(data, …)`."""
    edges = {"data_x0": repr(float(frame.x0)), "data_x1": repr(float(frame.x1))}
    return {
        "class_": "hover",
        "data_series": data,
        "data_left": frame.left,
        "data_right": frame.right,
        **edges,
    }


def cross(frame: Frame, bottom: float | None = None) -> str:
    """The vertical line that follows the pointer; the script moves and shows it."""
    return tag("line", y1=frame.top, y2=bottom or frame.bottom, x1=0, x2=0, class_="cross")


def hover_data(
    name: str, xs: Sequence[float], labels: Sequence[str], series: Mapping[str, Sequence[float | None]]
) -> str:
    """The values behind a plot, for the script that shows them; safe inside a page whatever the names are."""
    rows = [{"name": n, "values": [v if v is None else round(v, 5) for v in vs]} for n, vs in series.items()]
    data = json.dumps({"x": list(xs), "labels": list(labels), "series": rows}, separators=(",", ":"))
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="data-{name}">{safe}</script>'

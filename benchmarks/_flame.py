"""A flame graph of this process: a thread looks at the main thread's stack, and the counts are drawn as SVG."""

import sys
import threading
from collections import Counter
from html import escape
from pathlib import Path
from types import FrameType, TracebackType

Stack = tuple[str, ...]
EVERY_S = 0.002
WIDTH, ROW, TOP = 1200, 17, 26
NARROWEST = 0.002  # share of all samples below which a box is left out


class Sampler:
    """Counts stacks of the main thread while its body runs; a stack is what lies inside the function `root`."""

    def __init__(self, root: str) -> None:
        self._root, self._main = root, threading.main_thread().ident
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.stacks: Counter[Stack] = Counter()

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(EVERY_S):
            names = _names(sys._current_frames().get(self._main or 0))
            at = next((i for i, name in enumerate(names) if name.endswith(self._root)), None)
            if at is not None:
                self.stacks[tuple(name for name in names[at + 1 :] if "_clocked." not in name)] += 1


def _names(frame: FrameType | None) -> list[str]:
    names = []
    while frame is not None:
        code = frame.f_code
        names.append(f"{frame.f_globals.get('__name__', '')}.{code.co_qualname}")
        frame = frame.f_back
    return names[::-1]


def write_svg(stacks: Counter[Stack], path: Path, title: str) -> None:
    """Boxes as wide as their share of the samples, the caller below the called."""
    total = sum(stacks.values()) or 1
    deepest = max((len(stack) for stack in stacks), default=0)
    height = TOP + ROW * (deepest + 1)
    boxes: list[str] = []
    _draw(stacks, 0, 0.0, total, height, boxes)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" '
        f'font-size="11"><rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="8" y="17" font-size="13">{escape(title)}</text>{"".join(boxes)}</svg>\n'
    )


def _draw(stacks: Counter[Stack], depth: int, left: float, total: int, height: int, boxes: list[str]) -> None:
    groups: dict[str, Counter[Stack]] = {}
    for stack, count in stacks.items():
        if len(stack) > depth:
            groups.setdefault(stack[depth], Counter())[stack] += count
    for name, inner in sorted(groups.items(), key=lambda group: -sum(group[1].values())):
        share = sum(inner.values()) / total
        if share < NARROWEST:
            continue
        x, y, wide = left * WIDTH, height - ROW * (depth + 1), share * WIDTH
        hue = 20 + sum(map(ord, name)) % 40
        shown = escape(name[: int(wide / 6.7)]) if wide > 30 else ""
        boxes.append(
            f'<g><title>{escape(name)} {100 * share:.1f} %</title><rect x="{x:.1f}" y="{y}" width="{wide:.1f}" '
            f'height="{ROW - 1}" fill="hsl({hue} 85% 72%)"/><text x="{x + 3:.1f}" y="{y + 12}">{shown}</text></g>'
        )
        _draw(inner, depth + 1, left, total, height, boxes)
        left += share

"""What every benchmark shares: its options, its table, its JSON file, a folder to throw away, and how it ends.

Run by itself it does nothing, so that a loop over `benchmarks/*.py` may meet it.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the two options that every benchmark takes; the script adds its own."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="less data and fewer rounds: under a minute")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, as a flat object")
    return made


def finish(measure: Callable[[], Mapping[str, float]], json_path: Path | None) -> None:
    """Measure, write the figures, and turn what a user can mend into a sentence and exit code 1."""
    try:
        write_json(json_path, measure())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def write_json(path: Path | None, figures: Mapping[str, float]) -> None:
    """Write name → number as one flat JSON object. Raises ValueError for what is no finite number.

    A figure that could not be measured is left out by the caller; it is never null or NaN.
    """
    wrong = [name for name, value in figures.items() if not _is_number(value)]
    if wrong:
        raise ValueError(f"no finite number: {', '.join(wrong)}")
    if path is None:
        return
    text = json.dumps(dict(figures), indent=2)
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "name another file with --json") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def table(headers: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """Columns under their headers: text to the left, numbers (with thousands marks) to the right."""
    texts = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(headers), *texts]) for i in range(len(headers))]
    right = [any(not isinstance(row[i], str) for row in rows) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            c.rjust(w) if to_right else c.ljust(w)
            for c, w, to_right in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *map(line, texts)])


def number(value: float) -> str:
    """Three or more digits of a figure: 38,412 or 41.2 or 0.153."""
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder under TMPDIR that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="driftline-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without a setting of ours, then `more`.

    Children may write byte code: else every start would compile thousands of modules, in the measured time.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)
    return ours | {"PYTHONPATH": str(ROOT)} | dict(more)

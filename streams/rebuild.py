"""A version made once more: from the nearest checkpoint before it, the ledger, and the labelled rows that it names.

Every version between the checkpoint and the one that is asked for is made again too, since a refresh is what changed
since the version before it; the first one that differs is told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infra.metrics import Metrics
from learners import checkpoint
from learners.admission import BadUpdate
from learners.arena import Arena
from learners.checkpoint import IncompleteCheckpoint
from learners.cuts import RowsGone
from learners.entries import Line, OneStep, Position, Settings, Steered, Version, Warned, in_order
from learners.ledger import BrokenLedger, read_lines
from learners.recipe import Recipe
from streams.heads import Heads
from streams.kept import Kept, positions_of, replayable
from streams.labelled import LabelledLog, LabelledReader
from streams.publishing import update_of
from streams.task import Task
from streams.training import steer

Told = Callable[[int, int], None]


class CannotRebuild(Exception):
    """What is needed to make a version again is not there any more; the message says what."""


@dataclass(frozen=True)
class Rebuilt:
    """What came out. `differs` is the first version whose tensors or chain are not those of the ledger, if any.

    `begin` says where it began, `steps` how many steps were repeated; `sha256` and `chain` are of what was made.
    """

    version: Version
    begin: str
    steps: int
    sha256: str
    chain: str
    differs: str | None


@dataclass(frozen=True)
class _Start:
    """An arena to begin with, where it stands, and the entry of the ledger that it stands at."""

    name: str
    recipe: Recipe
    arena: Arena
    step: int
    n: int
    positions: dict[int, Position]


def ledger_of(kept: Kept) -> tuple[list[Line], str]:
    """The entries that can be read, oldest first, and what is wrong with the others ("" if nothing is)."""
    lines: list[Line] = []
    try:
        lines.extend(read_lines(kept.ledger_path, kept.store, kept.ledger))
    except BrokenLedger as error:
        return lines, str(error)
    return lines, ""


def find_version(lines: Sequence[Line], version: str, wrong: str) -> tuple[int, Version]:
    """The entry of a version, with its number. Raises CannotRebuild when the ledger does not have it."""
    known = [(line.n, line.entry) for line in lines if isinstance(line.entry, Version)]
    found = [(n, entry) for n, entry in known if entry.version == version]
    if found:
        return found[-1]
    has = f"it has {known[0][1].version} to {known[-1][1].version}" if known else "it has no version"
    raise CannotRebuild(f"the training ledger does not know {version}: {wrong or has}")


def rebuild(task: Task, kept: Kept, version: str, source: LabelledLog, told: Told) -> Rebuilt:
    """Make a version of the task's model again. Raises CannotRebuild. `told(done, steps)` hears of the progress."""
    lines, wrong = ledger_of(kept)
    n, version_entry = find_version(lines, version, wrong)
    start = _start(kept, lines, n, version_entry, source)
    if start.recipe.schema != task.schema:
        raise CannotRebuild("the task's features are others now, and its rows cannot be read as they were")
    reader = LabelledReader(source, start.recipe.champion.batch_size, task.rows_hash, Metrics())
    between = [line for line in lines if start.n < line.n <= n]
    try:
        return _repeat(start, between, version_entry, reader, Heads(kept.store, task.name), told)
    except RowsGone as error:
        raise CannotRebuild(f"the labelled topic does not have all rows any more: {error}") from error
    except (BadUpdate, KeyError, ValueError) as error:
        raise CannotRebuild(str(error)) from error


def _repeat(
    start: _Start, lines: Sequence[Line], wanted: Version, reader: LabelledReader, heads: Heads, told: Told
) -> Rebuilt:
    recipe, arena, differs, done = start.recipe, start.arena, None, 0
    reader.start(start.positions)
    for each in in_order(lines, start.step):
        match each:
            case Settings():
                recipe = Recipe.from_dict(each.settings)
                arena = recipe.arena(None if each.fresh else arena)
                if each.fresh:
                    reader.start(each.positions)
            case OneStep():
                if each.settings != recipe.hash:
                    raise ValueError(
                        f"step {each.number} was taken with other settings than the ledger tells"
                    )
                arena.observe(reader.again(each), created_ms=0)
                done += 1
                told(done, wanted.step - start.step)
            case Steered():
                steer(arena, each, recipe.schema, heads)
            case Warned():
                arena.warned(each.alert)
            case Version():
                meta, _ = update_of(arena.arm(each.lineage), each.whole, each.above)
                if (meta["version"], meta["chain"], meta["sha256"]) != (
                    each.version,
                    each.chain,
                    each.sha256,
                ):
                    differs = differs or each.version
                if each is wanted:
                    return Rebuilt(wanted, start.name, done, meta["sha256"], meta["chain"], differs)
    raise ValueError("the ledger's entries are not in order")


def _start(kept: Kept, lines: Sequence[Line], n: int, version: Version, source: LabelledLog) -> _Start:
    """The newest good checkpoint before the version, or its beginning, from which the topic still has the rows."""
    oldest, by_number = source.oldest(), {line.n: line for line in lines}
    metas = checkpoint.metas(kept.store, kept.checkpoints)
    begun = max((line.n for line in lines if line.n < n and _fresh(line)), default=None)
    for number in sorted(metas, reverse=True):
        meta = metas[number]
        at = meta["ledger"]["n"]
        ours = at in by_number and by_number[at].chain == meta["ledger"]["chain"]
        if not ours or at >= n or at < (begun or 0) or not replayable(positions_of(meta), oldest):
            continue
        try:
            found = checkpoint.load(kept.store, kept.checkpoints, number)
            recipe = Recipe.from_dict(meta["recipe"])
            arena = recipe.arena()
            arena.load(found.files, meta["arena"])
        except (IncompleteCheckpoint, KeyError, ValueError, TypeError):
            continue
        return _Start(f"checkpoint {number}", recipe, arena, meta["step"], at, positions_of(meta))
    if begun is None:
        raise CannotRebuild(
            f"no checkpoint before {version.version} is left, and the ledger of its beginning was pruned"
        )
    entry = by_number[begun].entry
    assert isinstance(entry, Settings)
    if not replayable(entry.positions, oldest):
        gone = {p: offset for p, (offset, _) in entry.positions.items() if offset < oldest.get(p, 0)}
        told = ", ".join(f"partition {p} begins at {oldest[p]}, not {offset}" for p, offset in gone.items())
        raise CannotRebuild(f"no checkpoint is left from which the labelled topic has all rows: {told}")
    recipe = Recipe.from_dict(entry.settings)
    return _Start("the beginning", recipe, recipe.arena(), entry.step, begun, dict(entry.positions))


def _fresh(line: Line) -> bool:
    return isinstance(line.entry, Settings) and line.entry.fresh

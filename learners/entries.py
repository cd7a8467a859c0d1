"""What stands in the training ledger: the kinds of entries, and the order in which to repeat them.

A step is one `Arena.observe` of one batch; steps are numbered from 1. `step` of an entry that is no step is the number
of steps that were learned when it was written.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from learners.drift import Alert

Position = tuple[int, int]
"""The offset of the next record of a partition, and how many of its rows are done already."""


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Neighbouring rows of one partition: from a position up to another, without it."""

    partition: int
    offset: int
    row: int
    next_offset: int
    next_row: int

    @property
    def start(self) -> Position:
        """Where the run begins."""
        return self.offset, self.row

    @property
    def end(self) -> Position:
        """The position after the run."""
        return self.next_offset, self.next_row


class Settings(msgspec.Struct, frozen=True, tag="settings", tag_field="kind"):
    """From here on the arena is made of these settings (`learners.recipe`).

    `fresh`: with an untrained model, from `positions` on; else it takes over all that the arena before it knew.
    """

    step: int
    hash: str
    settings: dict[str, Any]
    fresh: bool
    why: str
    positions: dict[int, Position]


class Steps(msgspec.Struct, frozen=True, tag="steps", tag_field="kind"):
    """Steps that are about to be taken, `step` the number of the first.

    `runs` are the rows of each step in their order, `rows` how many they are, `event_ms` the event times of the first
    and the last of all of them. `seed` and `settings` (a hash) are those of the arena.
    """

    step: int
    runs: tuple[tuple[Run, ...], ...]
    rows: tuple[int, ...]
    event_ms: tuple[int, int]
    seed: int
    settings: str


class Version(msgspec.Struct, frozen=True, tag="version", tag_field="kind"):
    """A version that is about to be published, and what it has learned: all up to step `step`.

    `sha256` is that of the published tensors, `chain` that of all updates of the lineage (`learners.weights`).
    `above` is the number that a whole model had to be above, `why` the reason for it. `born` is the step after which
    its lineage began, `examples` how many labelled examples the arena had seen, `positions` where the learner was.
    """

    step: int
    version: str
    whole: bool
    above: int | None
    why: str
    chain: str
    sha256: str
    born: int
    examples: int
    event_ms: int
    positions: dict[int, Position]

    @property
    def lineage(self) -> str:
        """Such as L2."""
        return self.version.partition(".")[0]


class Steered(msgspec.Struct, frozen=True, tag="steered", tag_field="kind"):
    """What was decided outside of the arena, by workers' reports or by a person, and is done after `step` steps.

    `action` is promote, reject (the end of a trial) or rollback. `target` is a lineage on trial, one that still learns,
    or the version of a stored model; "" for the champion that the guard kept. `facts` belong into the decision's
    evidence.
    """

    step: int
    action: Literal["promote", "reject", "rollback"]
    target: str
    why: str
    facts: dict[str, Any]
    event_ms: int
    created_ms: int


class Warned(msgspec.Struct, frozen=True, tag="warned", tag_field="kind"):
    """Inputs or scores of served events moved, noticed after `step` steps by who watches them, without labels.

    `positions` are the offsets at which the watch of the examples went on, `seen` the rows that it had looked at.
    """

    step: int
    alert: Alert
    positions: dict[int, int]
    seen: int


class Void(msgspec.Struct, frozen=True, tag="void", tag_field="kind"):
    """Steps after `step` that the ledger has so far were never finished and cannot be repeated."""

    step: int
    why: str


Entry = Settings | Steps | Version | Steered | Warned | Void


class Line(msgspec.Struct, frozen=True):
    """Entry number `n`, written at `at_ms`; `chain` is the hash of everything up to and with it."""

    n: int
    at_ms: int
    entry: Entry
    chain: str = ""


@dataclass(frozen=True)
class OneStep:
    """One step: its number, its rows, and the hash of the settings that it was meant for."""

    number: int
    runs: tuple[Run, ...]
    rows: int
    settings: str


def in_order(lines: Iterable[Line], done: int) -> Iterator[OneStep | Settings | Version | Steered | Warned]:
    """What is to be repeated after the first `done` steps, in the order in which it happened.

    Several steps are announced by one entry, so a version that was made between them stands after all of them.
    """
    waiting: deque[OneStep] = deque()

    def up_to(step: int) -> Iterator[OneStep]:
        while waiting and waiting[0].number <= step:
            yield waiting.popleft()

    for line in lines:
        match line.entry:
            case Steps() as steps:
                yield from up_to(steps.step - 1)
                for number, (runs, rows) in enumerate(zip(steps.runs, steps.rows, strict=True), steps.step):
                    if number > done:
                        waiting.append(OneStep(number, runs, rows, steps.settings))
            case Void() as void:
                yield from up_to(void.step)
                waiting.clear()
            case entry:
                yield from up_to(entry.step)
                yield entry
    yield from waiting

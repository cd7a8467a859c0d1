"""`driftline lineage`: from one prediction to the version that made it, to what that had learned, to the data."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from infra.errors import UserError
from infra.settings import load_secret
from streams.look import JsonOption, KafkaOption, TaskOption, clock
from streams.privacy import Pseudonymiser
from streams.running import connected
from streams.task import Task, load_task

_console = Console(highlight=False, soft_wrap=True)
Row = dict[str, Any]


def lineage(
    event_id: Annotated[
        str, typer.Argument(help="The event's id, as its producer sent it or as predictions have it.")
    ],
    task: TaskOption = "clicks",
    kafka: KafkaOption = "",
    as_json: JsonOption = False,
) -> None:
    """Tell where a prediction comes from: its version, what that had learned, and whether it learned this event."""
    from streams.evidence import find_event
    from streams.kept import Kept
    from streams.rebuild import ledger_of

    loaded, settings = load_task(task), connected(kafka)
    for known_as in _ids(loaded, settings.secret, event_id):
        event = find_event(loaded, settings, known_as)
        if event.prediction is not None or event.rows:
            break
    else:
        raise UserError(
            f"{loaded.name} knows no event {event_id!r}",
            "give the id as the event has it; what Kafka and the archive have deleted is gone",
        )
    kept = Kept.of(settings, loaded.name)
    lines, wrong = ledger_of(kept)
    facts: Row = {
        "event_id": known_as,
        "task": loaded.name,
        "prediction": event.prediction,
        "label": event.label,
    }
    facts |= explain(loaded, settings.blobs, lines, event.prediction, event.oldest)
    facts["trained"] = [trained_on(lines, *place) for place in event.rows]
    facts["ledger_problem"] = wrong or None
    if as_json:
        print(json.dumps(facts))
    else:
        _tell(facts)


def _ids(task: Task, secret: Path, event_id: str) -> list[str]:
    """What the event may be known by: where the task hides ids, its pseudonym, which may be what was typed."""
    if task.event.id not in task.privacy.pseudonymise:
        return [event_id]
    return [Pseudonymiser(load_secret(secret)).text(task.event.id, event_id), event_id]


def explain(
    task: Task, blobs: str, lines: Sequence[Any], prediction: Row | None, oldest: dict[int, int]
) -> Row:
    """The version of a prediction, its lineages back to the first, and what of the log it had learned."""
    from infra.blobs import Blobs
    from learners.registry import Registry

    if prediction is None:
        return {"version": None, "lineages": [], "learned": None}
    births = {
        birth.name: birth for birth in Registry(Blobs(blobs), f"models/{task.name}/registry").lineages()
    }
    name, _, _ = prediction["version"].partition(".")
    chain: list[Row] = []
    while name in births and name not in {row["lineage"] for row in chain}:
        birth = births[name]
        chain.append(
            {
                "lineage": name, "parent": birth.parent, "why": birth.why, "born_at": birth.created_ms,
                "event_time": birth.event_ms or None, "seed": birth.seed, "config": dict(birth.config),
            }
        )  # fmt: skip
        name = (birth.parent or "").partition(".")[0]
    version, learned = _learned(lines, prediction["version"], oldest)
    return {"version": version, "lineages": chain, "learned": learned}


def _learned(lines: Sequence[Any], version: str, oldest: dict[int, int]) -> tuple[Row | None, Row | None]:
    """What the ledger knows of a version, and the range of it that the version has learned; None where it does not."""
    from learners.entries import Settings, Steps, Version
    from streams.kept import replayable

    at = [
        i for i, line in enumerate(lines) if isinstance(line.entry, Version) and line.entry.version == version
    ]
    if not at:
        return None, None
    line, entry = lines[at[-1]], lines[at[-1]].entry
    told = {
        "version": version, "entry": line.n, "published_at": line.at_ms, "sha256": entry.sha256,
        "kind": "whole" if entry.whole else "refresh", "step": entry.step, "lineage_after_step": entry.born,
    }  # fmt: skip
    begun = [i for i in range(at[-1]) if isinstance(lines[i].entry, Settings) and lines[i].entry.fresh]
    if not begun:  # the beginning was pruned
        return told, None
    first = lines[begun[-1]]
    steps = [each.entry for each in lines[begun[-1] : at[-1]] if isinstance(each.entry, Steps)]
    times = [ms for each in steps if each.step <= entry.step for ms in each.event_ms]
    return told, {
        "entries": [first.n, line.n],
        "steps": [first.entry.step + 1, entry.step],
        "examples": entry.examples,
        "event_time": [min(times), max(times)] if times else None,
        "offsets": {
            str(p): [list(first.entry.positions.get(p, (0, 0))), list(end)]
            for p, end in entry.positions.items()
        },
        "rows_are_there": replayable(first.entry.positions, oldest),
    }


def trained_on(lines: Sequence[Any], partition: int, offset: int, row: int) -> Row:
    """The step that learned a labelled row, and the first version that had; "step" is None when none has."""
    from learners.entries import Steps, Version

    place: Row = {"partition": partition, "offset": offset, "row": row}
    step = None
    for line in lines:
        if isinstance(line.entry, Steps):
            for number, runs in enumerate(line.entry.runs, line.entry.step):
                if any(run.partition == partition and run.start <= (offset, row) < run.end for run in runs):
                    step, entry, at = number, line.n, line.at_ms
    if step is None:
        return place | {"step": None, "entry": None, "learned_at": None, "first_version": None}
    after = [
        line.entry.version
        for line in lines
        if isinstance(line.entry, Version) and line.entry.step >= step and line.n > entry
    ]
    return place | {
        "step": step,
        "entry": entry,
        "learned_at": at,
        "first_version": after[0] if after else None,
    }


def _tell(facts: Row) -> None:
    """The facts in sentences."""
    _console.print(facts["event_id"], style="bold", markup=False, end="")
    _console.print(f" of task {facts['task']}")
    for told in (_prediction, _version, _learning, _label):
        for line in told(facts):
            _console.print(f"  {line}", markup=False)
    if facts["ledger_problem"]:
        _console.print(
            f"  the training ledger cannot be read to its end: {facts['ledger_problem']}", markup=False
        )


def _prediction(facts: Row) -> Iterator[str]:
    found = facts["prediction"]
    if found is None:
        yield "no prediction of it is known"
        return
    source = found["source"]
    yield f"scored {found['score']:.6g} by {found['version']} at {clock(found['processed_at'])}"
    yield f"event of {clock(found['event_time'])}, offset {source['offset']} of partition {source['partition']}"
    if facts["version"] is None:
        yield f"{found['version']} is not in the training ledger"


def _version(facts: Row) -> Iterator[str]:
    version = facts["version"]
    if version is not None:
        yield (
            f"{version['version']} is a {version['kind']} of {clock(version['published_at'])}, after step "
            f"{version['step']:,}: entry {version['entry']:,} of the training ledger, SHA-256 {version['sha256'][:16]}…"
        )
        yield f"  to check it: driftline models verify {version['version']} --task {facts['task']}"
    for row in facts["lineages"]:
        parent, config = (
            f"a copy of {row['parent']}" if row["parent"] else "an untrained model",
            row["config"],
        )
        yield f"{row['lineage']} began as {parent} at {clock(row['born_at'])}: {row['why']}"
        yield f"  {config['family']}, {config['optimiser']} {config['learning_rate']:g}, seed {row['seed']}"


def _learning(facts: Row) -> Iterator[str]:
    learned = facts["learned"]
    if learned is None:
        return
    first, last = learned["steps"]
    yield f"it had learned {learned['examples']:,} examples, in steps {first:,} to {last:,}"
    if learned["event_time"]:
        yield f"  of events from {clock(learned['event_time'][0])} to {clock(learned['event_time'][1])}"
    for p, (begin, end) in learned["offsets"].items():
        yield f"  partition {p} of the labelled topic: from offset {begin[0]} up to offset {end[0]}, row {end[1]}"
    yield f"  the topic {'still has' if learned['rows_are_there'] else 'does not have all of'} these rows"


def _label(facts: Row) -> Iterator[str]:
    label = facts["label"]
    if label is None:
        yield "no label of it is known"
    else:
        yield f"label {label['label']:g} ({label['source']}), known at {clock(label['known_at'])}"
    for row in facts["trained"]:
        place = f"row {row['row']} of offset {row['offset']} of partition {row['partition']}"
        if row["step"] is None:
            yield f"  {place} of the labelled topic, not learned so far"
            continue
        then = f"first in {row['first_version']}" if row["first_version"] else "not published so far"
        yield f"  {place}, learned in step {row['step']:,} at {clock(row['learned_at'])}, {then}"

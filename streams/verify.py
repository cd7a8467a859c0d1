"""`driftline models verify`: is this version what its ledger says?"""

import json
import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from streams.look import JsonOption, KafkaOption, TaskOption
from streams.running import connected
from streams.task import Task, load_task

VERIFIED, DIFFERS, CANNOT = 0, 1, 2
_WORDS = {VERIFIED: "verified", DIFFERS: "differs", CANNOT: "cannot be rebuilt"}
_COLOURS = {VERIFIED: "green", DIFFERS: "red", CANNOT: "yellow"}

_console = Console(highlight=False, soft_wrap=True)


def verify(
    version: Annotated[str, typer.Argument(help="Such as L2.41.")],
    task: TaskOption = "clicks",
    kafka: KafkaOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a version again from the training ledger and the labelled rows, and compare it with what was published.

    Exit codes: 0 verified, 1 it differs, 2 it cannot be rebuilt.
    """
    import torch

    from streams.kept import Kept
    from streams.labelled import KafkaLog
    from streams.topics import Topics

    torch.set_num_threads(1)  # as the learner does: other numbers of threads may give other last bits
    loaded, settings = load_task(task), connected(kafka)
    topics, kept = Topics.of(loaded), Kept.of(settings, loaded.name)
    source = KafkaLog(settings.kafka, topics.labelled, settings.partitions)
    try:
        code, facts = compare(loaded, kept, source, version, settings.kafka)
    finally:
        source.close()
    if as_json:
        print(json.dumps(facts))
    else:
        _console.print(f"[bold {_COLOURS[code]}]{_WORDS[code]}[/] {version}: ", end="")
        _console.print(facts["reason"], markup=False)
    raise typer.Exit(code)


def compare(task: Task, kept: Any, source: Any, version: str, kafka: str = "") -> tuple[int, dict[str, Any]]:
    """The exit code and what is known. `kafka`: compare with what its topic of updates has, too."""
    from streams.rebuild import CannotRebuild, rebuild

    facts: dict[str, Any] = {"task": task.name, "version": version}
    began = time.monotonic()
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("repeating steps", total=None)

            def told(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total)

            found = rebuild(task, kept, version, source, told)
    except CannotRebuild as error:
        return CANNOT, facts | {"verdict": _WORDS[CANNOT], "reason": str(error)}
    facts |= {
        "begin": found.begin, "steps": found.steps, "step": found.version.step, "examples": found.version.examples,
        "seconds": round(time.monotonic() - began, 3), "published": found.version.sha256, "rebuilt": found.sha256,
        "chain": found.version.chain, "chain_rebuilt": found.chain,
    }  # fmt: skip
    sent = _sent(task, kafka, version) if kafka else set()
    if (found.sha256, found.chain) != (found.version.sha256, found.version.chain):
        reason = f"{found.steps:,} steps from {found.begin} give other weights than the ledger says"
        if found.differs != version:
            reason += f", {found.differs} on the way too"
    elif sent - {found.sha256}:
        reason = "the topic of updates has other weights under that name"
    else:
        where = "the ledger and the topic of updates say" if sent else "the ledger says"
        reason = f"{found.steps:,} steps from {found.begin} give what {where}, SHA-256 {found.sha256[:16]}…"
        if found.differs:
            reason += f" (but {found.differs} on the way is not what the ledger says)"
        return VERIFIED, facts | {"verdict": _WORDS[VERIFIED], "reason": reason}
    return DIFFERS, facts | {"verdict": _WORDS[DIFFERS], "reason": reason}


def _sent(task: Task, kafka: str, version: str) -> set[str]:
    """SHA-256 of the updates of that name which the topic still has."""
    from streams.outlet import published
    from streams.topics import Topics

    return {
        meta["sha256"]
        for _, meta in published(kafka, Topics.of(task).model_updates, -1)
        if meta["version"] == version
    }

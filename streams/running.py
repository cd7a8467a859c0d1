"""The note that a running Driftline leaves in its data folder, so that other commands find its Kafka."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from infra.errors import UserError
from infra.settings import Settings

_FILE = "run.json"


def running(data: Path) -> dict[str, str] | None:
    """{"kafka", "task"} of the Driftline that runs on this data folder, or None."""
    try:
        record = json.loads((data / _FILE).read_text())
        os.kill(record["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    return {"kafka": record["kafka"], "task": record["task"]}


def settings_here(kafka: str = "") -> Settings:
    """The environment's settings, with this Kafka if one is given. Raises UserError."""
    settings = Settings.from_env(os.environ)
    return replace(settings, kafka=kafka) if kafka else settings


def connected(kafka: str = "") -> Settings:
    """Settings with a Kafka: the one given, the environment's, or that of the Driftline that runs here."""
    settings = settings_here(kafka)
    if settings.kafka:
        return settings
    found = running(settings.data)
    if not found:
        raise UserError(
            f"no Kafka is known: nothing runs on {settings.data}",
            "start `driftline up` in another terminal, or give --kafka HOST:PORT",
        )
    return replace(settings, kafka=found["kafka"])


def refuse_second(data: Path) -> None:
    """Raises UserError when a Driftline runs on this folder."""
    if running(data):
        raise UserError(
            f"Driftline already runs on {data}", "stop it first, or give another folder with DRIFTLINE_DATA"
        )


@contextmanager
def noted(data: Path, kafka: str, task: str) -> Iterator[None]:
    """Keep the note while the body runs."""
    data.mkdir(parents=True, exist_ok=True)
    path = data / _FILE
    path.write_text(json.dumps({"kafka": kafka, "task": task, "pid": os.getpid()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)

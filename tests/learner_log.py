"""A learner over a log in memory: a stream whose rule turns, and all that a learner is, in one hash.

For the tests of streams/ and for `benchmarks/learner_kills.py`, which kills such learners.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load as tensors_from_bytes

from infra.kafka import Record
from infra.settings import Settings
from learners.arena import Arena
from learners.trainer import STATE_RECORD, STATE_TENSORS
from streams.labelled import ListLog
from streams.learn import Learner
from streams.outlet import Outlet
from streams.rows import Labelled, Rows
from streams.task import Task, load_task
from streams.task_parse import parse_task
from streams.wire import decode_labelled, encode_labelled, partition_of_id

__all__ = ["decode_labelled"]

PARTITIONS = 2
MODEL = 'family = "logistic"\nrows = 256\nlearning_rate = 0.003\nbatch_size = 64'
DRIFT = "[drift]\nmin_events = 500\nmax_events = 2000\ncooldown = 1000\nwindow = 400"


def small_task(name: str = "small", more: str = "calendar = true") -> Task:
    """The clicks with a small model, and challengers that soon know."""
    text = load_task("clicks").text.replace('name = "clicks"', f'name = "{name}"')
    text = text.replace("calendar = true", more)
    text = text.replace("learning_rate = 0.0015\nbatch_size = 64", MODEL).replace(
        "learning_rate = 0.005", "learning_rate = 0.05"
    )
    text = f'{text}\n{DRIFT}\n[serving]\nrefresh_every = "50ms"\n'
    return parse_task(text, name, Path(f"{name}.toml"))


@dataclass
class Logged:
    """A record as a consumer hands it out."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


def labelled(task: Task, count: int, seed: int = 4, turn: float = 0.5) -> Labelled:
    """`count` labelled rows, one a second: what is positive follows the first numbers, the other way after the turn."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(count, len(task.numbers))).astype(np.float32)
    times = np.arange(count, dtype=np.int64) * 1_000
    rows = Rows(
        [f"e-{i}" for i in range(count)], times, times, np.zeros(count, np.int32), np.arange(count, dtype=np.int64),
        np.zeros(count, np.bool_), np.zeros((count, len(task.entities)), np.int64),
        rng.integers(1, 99, (count, len(task.categories))), np.zeros((count, len(task.number_fields))), numbers,
        task.rows_hash,
    )  # fmt: skip
    sign = np.where(np.arange(count) < turn * count, 2.0, -2.0)
    label = (sign * (numbers[:, 0] - numbers[:, 1]) + rng.normal(size=count) > 0.5).astype(np.float32)
    served = np.full(count, np.nan, np.float32)
    no = np.zeros(count, np.bool_)
    return Labelled(rows, served, ["L1.0"] * count, label, times + 500, no, np.zeros(count, np.float32), no)


def records(task: Task, rows: Labelled, seed: int = 4, *, by_id: bool = False) -> dict[int, list[Record]]:
    """The rows in records of some length, with gaps between the offsets; spread by chance, or as join does, by id."""
    rng = np.random.default_rng(seed)
    log: dict[int, list[Record]] = {partition: [] for partition in range(PARTITIONS)}
    start = offset = 0
    places = [partition_of_id(i, PARTITIONS) for i in rows.rows.ids] if by_id else []
    while start < len(rows):
        partition, stop = int(rng.integers(PARTITIONS)), min(start + int(rng.integers(1, 90)), len(rows))
        cut = np.arange(start, stop)
        for p in range(PARTITIONS) if by_id else [partition]:
            part = np.array([i for i in cut.tolist() if not by_id or places[i] == p], np.int64)
            if len(part):
                value = encode_labelled(rows.take(part))
                log[p].append(Logged(f"{task.name}.labelled", p, offset, start, value))
        start, offset = stop, offset + int(rng.integers(1, 3))
    return log


class EndingLog(ListLog):
    """Tells when all was read and nothing more comes."""

    def __init__(
        self, partitions: Mapping[int, list[Record]], at_once: int, on_end: Callable[[], None]
    ) -> None:
        super().__init__(partitions, at_once)
        self.on_end = on_end

    def poll(self, timeout_ms: int, skip: Collection[int]) -> Sequence[Record]:
        """See ListLog."""
        found = super().poll(timeout_ms, skip)
        if not found and not self.behind():
            self.on_end()
        return found


def learner(
    task: Task,
    data: Path,
    log: Mapping[int, list[Record]],
    outlet: Outlet,
    at_once: int = 64,
    checkpoint_every_ms: int = 100,
) -> Learner:
    """A learner that ends with the log."""
    settings = Settings(kafka="none:1", data=data, partitions=PARTITIONS)
    source = EndingLog(log, at_once, lambda: None)
    made = Learner(task, settings, source, outlet, checkpoint_every_ms=checkpoint_every_ms)
    source.on_end = made.stop
    return made


def digest(arena: Arena) -> str:
    """Hash of all that an arena is, but for the numbers of what it has published, and when it did."""
    files, record = arena.state()
    found = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, data in sorted(files.items()):
        if name == "freshness.npz":
            continue
        found.update(name.encode())
        if name.endswith(STATE_TENSORS):
            for key, tensor in sorted(tensors_from_bytes(data).items()):
                if key != "changed":
                    found.update(key.encode() + tensor.contiguous().numpy().tobytes())
        elif name.endswith(STATE_RECORD):
            known = json.loads(data)
            for published in ("refresh", "chain", "unsent"):
                del known[published]
            found.update(json.dumps(known, sort_keys=True).encode())
        else:
            found.update(data)
    return found.hexdigest()

"""Learners killed at random instants, and then the count: weights of an undisturbed one, no row twice, none skipped.

Two kinds of lives, both with the learner's own code, its files and its fsyncs. Most are forks of this process that read
a log in memory: they need no second for starting, so there can be many, and a kill hits restoring and repeating as
often as learning. The others are whole processes (`driftline learn`) on a real Kafka. After every kill the next life
says what it is once it is ready: a hash of everything in its arena, which must be that of the undisturbed learner after
as many steps. The time to be ready is counted from the fork, or from the start of the process with all its imports.
"""

import json
import os
import random
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

ROWS = 8_000
LONGEST_S = 1.2  # a life ends at a random instant up to then


class FileOutlet:
    """Updates as lines of a file, which outlive a learner; what is said to people goes nowhere."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def send(self, topic: str, value: bytes, key: bytes) -> None:
        """See Outlet."""

    def publish(self, meta: dict[str, Any], payload: bytes) -> int:
        """See Outlet."""
        with self._path.open("ab", buffering=0) as file:
            file.write(json.dumps(meta).encode() + b"\n")
        return len(self.metas()) - 1

    def published(self, after: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """See Outlet."""
        yield from list(enumerate(self.metas()))[after + 1 :]

    def metas(self) -> list[dict[str, Any]]:
        """All updates."""
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]

    def reached(self, places: Mapping[str, Mapping[int, int]]) -> None:
        """See Outlet."""

    def close(self) -> None:
        """See Outlet."""


class Kills:
    """A stream that is learned again and again by learners that die, and what came of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        from tests import learner_log as logs

        self._folder, self._random = folder, random.Random(seed)
        self._logs, self.task = logs, logs.small_task()
        self.log = logs.records(self.task, logs.labelled(self.task, ROWS))
        self.kills = self.mismatches = self.trained_twice = self.skipped = self.streams = 0
        self.ready_s: list[float] = []
        self._digests = self._undisturbed()

    def _undisturbed(self) -> list[str]:
        """The hash of the undisturbed learner after each number of steps."""
        learner = self._logs.learner(
            self.task, self._folder / "whole", self.log, FileOutlet(self._folder / "whole.out")
        )
        learn, digests = learner.training.learn, [self._logs.digest(learner.training.arena)]

        def learn_and_look(*arguments: Any) -> None:
            learn(*arguments)
            digests.append(self._logs.digest(learner.training.arena))

        setattr(learner.training, "learn", learn_and_look)  # noqa: B010
        learner.run()
        return digests

    def run(self, kills: int) -> None:
        """Kill that many learners, one stream after another; the last stream is learned to its end."""
        while self.kills < kills:
            self._stream(kills)

    def _stream(self, kills: int) -> None:
        self.streams += 1
        data, outlet = (
            self._folder / f"stream-{self.streams}",
            FileOutlet(self._folder / f"{self.streams}.out"),
        )
        ended = False
        while not ended:
            after = self._random.uniform(0.0, LONGEST_S) if self.kills < kills else None
            ended = self._life(data, outlet, after)
        self._count(data, outlet)

    def _life(self, data: Path, outlet: FileOutlet, after: float | None) -> bool:
        """One learner; whether it came to the end of the stream before it was killed."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            self._learn(data, outlet, writing)
        os.close(writing)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reading) as pipe:
            said = [json.loads(line) for line in pipe]
        _, status = os.waitpid(child, 0)
        self.kills += os.WIFSIGNALED(status)
        for each in said:
            self.mismatches += each["digest"] != self._digests[each["step"]]
            if "ready_s" in each:
                self.ready_s.append(each["ready_s"])
        if not os.WIFSIGNALED(status):
            self.mismatches += not (
                os.WEXITSTATUS(status) == 0 and said and said[-1]["step"] == len(self._digests) - 1
            )
        return not os.WIFSIGNALED(status)

    def _learn(self, data: Path, outlet: FileOutlet, writing: int) -> None:
        """The child: learn to the end, and say what it is when it is ready and when it has ended."""
        code = 1
        try:
            began = time.monotonic()
            chance = random.Random(os.getpid())
            learner = self._logs.learner(self.task, data, self.log, outlet, at_once=chance.choice([1, 5, 60]))
            start, training = learner.start, learner.training

            def say(**more: float) -> None:
                told = {"step": training.step, "digest": self._logs.digest(training.arena)} | more
                os.write(writing, json.dumps(told).encode() + b"\n")

            def started() -> None:
                start()
                say(ready_s=time.monotonic() - began)

            setattr(learner, "start", started)  # noqa: B010
            learner.run()
            say()
            code = 0
        finally:
            os._exit(code)

    def _count(self, data: Path, outlet: FileOutlet) -> None:
        """What the ledger says was learned, row by row, and whether a version named two models."""
        from infra.settings import Settings
        from learners.entries import Steps
        from streams.kept import Kept
        from streams.rebuild import ledger_of

        ordinals = {p: self._ordinals(p) for p in self.log}
        reached = dict.fromkeys(self.log, 0)
        lines, wrong = ledger_of(Kept.of(Settings(kafka="none:1", data=data), self.task.name))
        self.mismatches += bool(wrong)
        for entry in (line.entry for line in lines):
            for run in (run for runs in entry.runs for run in runs) if isinstance(entry, Steps) else ():
                start, end = (self._ordinal(ordinals[run.partition], at) for at in (run.start, run.end))
                self.skipped += max(0, start - reached[run.partition])
                self.trained_twice += max(0, reached[run.partition] - start)
                reached[run.partition] = end
        self.skipped += sum(sum(ordinals[p].values()) - reached[p] for p in self.log)
        chains: dict[str, str] = {}
        for meta in outlet.metas():
            self.mismatches += chains.setdefault(meta["version"], meta["chain"]) != meta["chain"]

    def _ordinals(self, partition: int) -> dict[int, int]:
        """Offset → rows of the record."""
        decode = self._logs.decode_labelled
        return {record.offset: len(decode(record.value)) for record in self.log[partition]}

    @staticmethod
    def _ordinal(rows: Mapping[int, int], position: tuple[int, int]) -> int:
        """How many rows of the partition lie before a position."""
        offset, row = position
        return sum(count for at, count in rows.items() if at < offset) + row


def real_kills(folder: Path, kills: int, seed: int) -> list[float]:
    """Seconds from the start of `driftline learn` on a real Kafka until it is ready, each after a kill."""
    from infra.embedded import EmbeddedKafka
    from infra.kafka import make_producer
    from infra.settings import Settings
    from streams.prepare import prepare
    from streams.topics import Topics
    from tests import learner_log as logs
    from tests.system import run_support as runs

    chance, seconds = random.Random(seed), list[float]()
    with EmbeddedKafka(folder / "kafka") as broker:
        task = runs.own_task(folder, "killed")
        settings = prepare(
            task, Settings(kafka=broker.address, data=folder / "data", partitions=logs.PARTITIONS)
        )
        with make_producer(broker.address) as producer:
            for partition, found in logs.records(task, logs.labelled(task, 60_000)).items():
                for record in found:
                    producer.send(Topics.of(task).labelled, record.value, partition=partition)
            producer.flush()
        for _ in range(kills + 1):
            began = time.monotonic()
            command = ("learn", "--task", str(task.path), "--kafka", broker.address)
            with runs.running(settings.data, *command) as run:
                run.wait_for("ready with")
                seconds.append(time.monotonic() - began)
                time.sleep(chance.uniform(0.0, 3.0))
                run.process.kill()
    return seconds[1:]


def measure(args: Namespace) -> dict[str, float]:
    """Run, print the table, give the figures."""
    import torch

    torch.set_num_threads(1)
    wanted = args.kills if args.kills is not None else 20 if args.quick else 200
    real = args.real if args.real is not None else 1 if args.quick else 5
    with scratch() as folder:
        kills = Kills(folder, args.seed)
        began = time.monotonic()
        kills.run(wanted)
        took = time.monotonic() - began
        seconds = real_kills(folder, real, args.seed) if real else []
    rows: list[tuple[str, float]] = [
        ("forks killed", kills.kills),
        ("streams learned to their end", kills.streams),
        ("mismatches with the undisturbed learner", kills.mismatches),
        ("rows trained twice", kills.trained_twice),
        ("rows skipped", kills.skipped),
        ("ready again after a fork, longest, s", max(kills.ready_s)),
        ("seconds that the forks took", took),
        ("processes killed on Kafka", len(seconds)),
    ]
    if seconds:
        rows.append(("ready again as a process, longest, s", max(seconds)))
    print(table(["what", "figure"], rows))
    return {
        "kills": kills.kills + len(seconds),
        "mismatches": kills.mismatches,
        "trained_twice": kills.trained_twice,
        "skipped": kills.skipped,
        "ready_s_max": max([*kills.ready_s, *seconds]),
    }


def main() -> None:
    """The command line."""
    options = parser(__doc__ or "")
    options.add_argument("--kills", type=int, help="forks to kill; default 200, 20 with --quick")
    options.add_argument(
        "--real", type=int, help="processes on a real Kafka to kill; default 5, 1 with --quick"
    )
    options.add_argument("--seed", type=int, default=1)
    args = options.parse_args()
    finish(lambda: measure(args), args.json)


if __name__ == "__main__":
    main()

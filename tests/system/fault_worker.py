"""Serve workers that meet a fault at a given step, one life after the other; for the tests only.

    python fault_worker.py FAULTS serve --task ... --kafka ...

FAULTS is a file with one fault a line, `ACTION STEP WHERE COUNT`. Each line is for one life of the worker: when the
step is reached for the COUNT-th time by a partition whose transactional id contains WHERE, it does ACTION to itself.
After the last line it lives without faults. Each life is a process of its own that runs the real command; a new one
follows when it was killed or asks for it (exit code 70), as under `infra.supervisor`.

ACTION is "kill" (SIGKILL) or "stop" (SIGSTOP: somebody must let it go on). The steps of the commit order
(`streams.transaction`), of taking a partition over and of storing a snapshot are:

    fenced      the transactional producer is open, nothing has been read
    replayed    the state is folded up to the committed offset
    begun       a transaction has begun, nothing is written
    half-sent   some of the outputs are with Kafka, some are not
    sent        all outputs are with Kafka, the offsets are not in the transaction
    offsets     the offsets are in the transaction, which is not committed
    committing  Kafka was asked to commit and has perhaps done so
    committed   the transaction is committed, and nobody here knows it yet
    draft       a snapshot is written to a draft, which has not its name yet (WHERE is "disk")

"full draft disk COUNT" is another kind: from then on in this life there is no space left for a snapshot.

Nothing in the product knows of this: methods are wrapped here before the real command takes over. Lives are forked
from one process that has imported everything, since starting Python anew takes seconds, and the session timeout is
short, so that a worker that is gone is soon noticed.
"""

import asyncio
import ctypes
import errno
import importlib
import mmap
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy comes: a process with threads is not safe to fork

SESSION_S, HEARTBEAT_S = 5.0, 1.0
AGAIN = 70  # streams.partitions.EXIT_AGAIN
_WHILE_COMMITTING_S = 0.002
_PR_SET_PDEATHSIG = 1
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Fault:
    """The fault of the present life; `met` is seen by the process that the lives come from, too."""

    def __init__(self) -> None:
        self._met = mmap.mmap(-1, 1)
        self.set("")

    def set(self, line: str) -> None:
        """Take a line of the file as the fault; "" for none."""
        self.action, self._step, self._where, count = line.split() if line else ("", "", "", "0")
        self._left, self._met[0] = int(count), 0

    @property
    def met(self) -> bool:
        """Whether it has happened."""
        return bool(self._met[0])

    def due(self, step: str, where: str) -> bool:
        """Whether it is to happen now; counts."""
        if step != self._step or self._where not in where or self._left <= 0:
            return False
        self._left -= 1
        return self._left == 0

    def happen(self, step: str, where: str) -> None:
        """Let it happen."""
        self._met[0] = 1
        print(f"fault: {self.action} {os.getpid()} at {step} of {where}", file=sys.stderr, flush=True)
        if self.action in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[self.action])

    def reached(self, step: str, where: str) -> None:
        """Let it happen if it is due."""
        if self.due(step, where):
            self.happen(step, where)


def wrap_producer(fault: Fault) -> None:
    """The producer's side: steps 1 and 4 to 6 of the commit order."""
    transaction: Any = importlib.import_module("streams.transaction")
    plain, plain_send = transaction.GroupProducer, transaction._send

    class Producer(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.where = str(options.get("transactional_id", ""))

        async def start(self) -> None:
            await super().start()
            fault.reached("fenced", self.where)

        async def begin_transaction(self) -> None:
            await super().begin_transaction()
            fault.reached("begun", self.where)

        async def send_offsets_to_transaction(self, *args: Any) -> None:
            await super().send_offsets_to_transaction(*args)
            fault.reached("offsets", self.where)

        async def commit_transaction(self) -> None:
            if fault.due("committing", self.where):
                asked = asyncio.ensure_future(super().commit_transaction())
                await asyncio.sleep(_WHILE_COMMITTING_S)
                fault.happen("committing", self.where)
                await asked
                return
            await super().commit_transaction()
            fault.reached("committed", self.where)

    async def send(producer: Any, outputs: Any) -> None:
        if outputs.records and fault.due("half-sent", producer.where):
            places = sorted(outputs.records)
            for place in places[: (len(places) + 1) // 2]:
                records = outputs.records[place]
                kept = records[: (len(records) + 1) // 2]
                await plain_send(producer, transaction.Outputs({place: kept}))
            fault.happen("half-sent", producer.where)
        await plain_send(producer, outputs)
        fault.reached("sent", producer.where)

    transaction.GroupProducer, transaction._send = Producer, send


def wrap_takeover(fault: Fault) -> None:
    """The end of taking a partition over."""
    serve: Any = importlib.import_module("streams.serve")
    plain = serve.ServeStep.open

    async def opened(self: Any, committed: Any) -> None:
        await plain(self, committed)
        fault.reached("replayed", self._main.topic)

    serve.ServeStep.open = opened


class Disk:
    """The operating system as `infra.blobs` sees it, with a full disk or a process that dies while it writes."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, handle: int) -> None:
        """Make a file's content durable, or not."""
        self._fault.reached("draft", "disk")
        if self._fault.action == "full" and self._fault.met:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)


def wrap_disk(fault: Fault) -> None:
    """The writing of snapshots."""
    blobs: Any = importlib.import_module("infra.blobs")
    blobs.os = Disk(fault)


def shorten_session() -> None:
    """A worker that is gone is noticed soon."""
    roles: Any = importlib.import_module("streams.roles")
    plain = roles.make_app

    def made(*args: Any, **options: Any) -> Any:
        app = plain(*args, **options)
        app.conf.broker_session_timeout = SESSION_S
        app.conf.broker_heartbeat_interval = HEARTBEAT_S
        return app

    roles.make_app = made


class NoModel:
    """Stands for the live model while the kernels are compiled or loaded, once for all lives."""

    def load(self) -> int:
        """Nothing to load."""
        return 0

    def score(self, *_: Any) -> None:
        """Nothing to score."""


def warm_up(task: str) -> None:
    """Import and compile what every life would import and compile. No thread may come of it: lives are forked."""
    for name in (
        "torch", "featurestore.repository", "streams.cli", "streams.live", "streams.online", "streams.worker"
    ):  # fmt: skip
        importlib.import_module(name)
    serve: Any = importlib.import_module("streams.serve")
    serve.warm_up(importlib.import_module("streams.task").load_task(task), NoModel())


def live(arguments: list[str], fault: Fault, line: str) -> int:
    """One life: the pid of a process that runs the real command, and does not outlive this one."""
    fault.set(line)
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    cli: Any = importlib.import_module("streams.cli")
    sys.argv = ["driftline", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stderr.flush()
    os._exit(code)


def main() -> NoReturn:
    """One life after the other, until one ends of its own will or this process is asked to end."""
    fault, arguments, stopping = Fault(), sys.argv[2:], list[int]()
    lines, pid = Path(sys.argv[1]).read_text().splitlines(), 0
    for wrap in (wrap_producer, wrap_takeover, wrap_disk):
        wrap(fault)
    shorten_session()
    warm_up(arguments[arguments.index("--task") + 1])

    def end(number: int, _: Any) -> None:
        stopping.append(number)
        if pid:
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, end)
    while True:
        line = lines.pop(0) if lines else ""
        pid = live(arguments, fault, line)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(f"life {pid} ended with {code}", file=sys.stderr, flush=True)
        if stopping or code not in (AGAIN, -signal.SIGKILL):
            sys.exit(code)
        if line and not fault.met:  # on a slow machine it may have been expelled, and ended itself, before
            lines.insert(0, line)


if __name__ == "__main__":
    main()

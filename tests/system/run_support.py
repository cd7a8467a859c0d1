"""Runs of the real command for the tests: start it, read what it says, find its processes, end it in every way.

A process belongs to a run when its environment names the run's data folder; the roles, their guards and the embedded
Kafka all inherit that.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import IO, Any

import msgspec
import psutil
import pytest

from featurestore.repository import FeatureWriter
from infra.kafka import Record, committed_offsets, end_offsets, group_ready, read_all
from infra.settings import Settings
from streams import cli
from streams.task import Task, load_task
from streams.topics import Topics

ROOT = Path(__file__).parents[2]
DRIFTLINE = Path(sys.executable).with_name("driftline")
PATIENCE_S = 180.0  # for anything that a busy machine may take long for; nothing here measures time
_TAIL = 60


def environment(data: Path, **more: str) -> dict[str, str]:
    """This process's environment without any setting of ours, then `data` and `more`.

    Children may write compiled files: without them every start compiles thousands of modules again.
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")}
    ours.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**ours, "DRIFTLINE_DATA": str(data), "DRIFTLINE_PARTITIONS": "2", "COLUMNS": "200"} | more


def driftline(data: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that ends by itself and return what it said.

    It runs in this process, as by `main`: one of its own would import for seconds what is imported here.
    """
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as here, redirect_stdout(out), redirect_stderr(err):
        here.chdir(data.parent)
        here.setattr(sys, "argv", ["driftline", *arguments])
        for name in [name for name in os.environ if name.startswith("DRIFTLINE_")]:
            here.delenv(name)
        for name, value in environment(data, **more).items():
            here.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            cli.main()
    return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out.getvalue(), err.getvalue())


def until(
    condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S, every_s: float = 0.2
) -> Any:
    """Wait until `condition()` is true and return its value; AssertionError that says what did not come."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}; the last look gave {value!r}"
        time.sleep(every_s)
    return value


def await_decided(kafka: str, topic: str) -> None:
    """Wait until no transaction holds `topic` back: Kafka answers a commit before its readers see what it wrote."""
    until(
        lambda: end_offsets(kafka, topic, read_committed=True) == end_offsets(kafka, topic),
        f"the end of the transactions in {topic}",
        every_s=0.05,
    )


class Run:
    """One long-running command on a data folder; its output is in `<data>.out`."""

    def __init__(self, data: Path, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.data, self.output_path = data, data.with_name(data.name + ".out")
        self._out: IO[bytes] = self.output_path.open("ab")
        self._said = self.output_path.stat().st_size
        self.process = subprocess.Popen(
            list(command), env=dict(env), cwd=data.parent, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._out
        )  # fmt: skip

    @property
    def output(self) -> str:
        """What this run has said so far."""
        return self.output_path.read_bytes()[self._said :].decode(errors="replace")

    def wait_for(self, text: str) -> "Run":
        """Wait until it has said `text`; fails when it ends before."""

        def said() -> bool:
            if text not in self.output:
                self.check_alive()
            return text in self.output

        until(said, f"{text!r} in the output")
        return self

    def check_alive(self) -> None:
        """Fails when it has ended."""
        assert self.process.poll() is None, f"it ended with exit code {self.process.poll()}:\n{self.output}"

    @property
    def kafka(self) -> str:
        """Address of the embedded Kafka that it told."""
        return str(re.findall(r"Kafka listens on (\S+)", self.output)[-1])

    def role_pid(self, role: str) -> int:
        """Process id of the role's worker itself, not of its guard; waits for one."""
        wanted = ["-m", "streams.cli", role]

        def found() -> int:
            return next((pid for pid, line in processes(self.data).items() if line[1:4] == wanted), 0)

        return int(until(found, f"a {role} process"))

    def kill_role(self, role: str) -> int:
        """End the role's worker as a crash would, and return its process id."""
        pid = self.role_pid(role)
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and wait for the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.ended()

    def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the exit code."""
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._out.close()
        try:
            until(lambda: not processes(self.data), "its processes to end")
        except AssertionError:
            for pid in processes(self.data):
                with _gone_is_fine():
                    os.kill(pid, signal.SIGKILL)
            raise

    def tails(self) -> Iterator[tuple[str, str]]:
        """(name, last lines) of its output and of every log under its folder."""
        logs = [*sorted(self.data.glob("**/logs/*.log")), *self.data.glob("**/kafka.log")]
        for path in [self.output_path, *logs]:
            lines = path.read_bytes().decode(errors="replace").splitlines()
            yield path.name, "\n".join(lines[-_TAIL:])


@contextmanager
def running(data: Path, *arguments: str, **more: str) -> Iterator[Run]:
    """`driftline ARGUMENTS` for as long as the body runs. What goes wrong in the body is raised with the logs."""
    yield from _run(Run(data, [str(DRIFTLINE), *arguments], environment(data, **more)))


@contextmanager
def running_command(data: Path, command: Sequence[str], **more: str) -> Iterator[Run]:
    """Any other command, like `running`."""
    yield from _run(Run(data, command, environment(data, **more)))


def serving(data: Path, task: Task, kafka: str, **more: str) -> AbstractContextManager[Run]:
    """A serve worker on a data folder, like `running`."""
    register(data, task, **more)
    return running(data, "serve", "--task", str(task.path), "--kafka", kafka, **more)


def register(data: Path, task: Task, **more: str) -> None:
    """Register the features of a serve worker to come with Feast, as `driftline up` does beside the broker's start.

    A worker does it itself where nobody did, but the import of Feast takes it seven seconds of processor time.
    """
    settings = Settings.from_env(environment(data, **more))
    FeatureWriter(settings.data, settings.online, task.name, task.views, settings.archive).apply()


def _run(run: Run) -> Iterator[Run]:
    try:
        yield run
    except BaseException as error:
        for name, text in run.tails():
            error.add_note(f"--- the end of {name}\n{text}")
        raise
    finally:
        run.close()


def processes(data: Path) -> dict[int, list[str]]:
    """Command lines by id of all processes whose environment names `data` or a folder in it."""
    found = {}
    for process in psutil.process_iter():
        with _gone_is_fine():
            ours = f"{process.environ().get('DRIFTLINE_DATA', '')}/".startswith(f"{data}/")
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process.cmdline()
    return found


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except (psutil.Error, ProcessLookupError):
        return


def own_task(folder: Path, name: str, *, serving: str = "") -> Task:
    """The built-in clicks under another name, in a file of its own; `serving` are lines of its [serving] table."""
    text = load_task("clicks").text.replace('name = "clicks"', f'name = "{name}"')
    path = folder / f"{name}.toml"
    path.write_text(f"{text}\n[serving]\n{serving}\n" if serving else text)
    return load_task(str(path))


def values(kafka: str, topic: str) -> list[Any]:
    """Every committed record's JSON value."""
    return [msgspec.json.decode(record.value or b"null") for record in read_all(kafka, topic)]


def letters(kafka: str, task: str) -> list[tuple[Record, dict[str, str]]]:
    """Every dead letter with its headers."""
    return [
        (record, {name: value.decode() for name, value in record.headers})
        for record in read_all(kafka, f"{task}.dead-letters")
    ]


def await_serving(run: Run, task: Task, kafka: str) -> None:
    """Wait until the serve worker that runs as `run` has its partitions."""

    def ready() -> bool:
        run.check_alive()
        return group_ready(kafka, f"driftline-{task.name}-serve")

    until(ready, "serve workers with partitions")


def await_consumed(kafka: str, task: Task, group: str, topic: str) -> None:
    """Wait until `group` has committed everything that lies in `topic`, whose records come without transactions."""
    name, ends = f"driftline-{task.name}-{group}", end_offsets(kafka, topic)
    wanted = {partition: end for partition, end in ends.items() if end}

    def behind() -> dict[int, int]:
        done = committed_offsets(kafka, name, topic)
        return {p: end - done.get(p, 0) for p, end in wanted.items() if done.get(p, 0) < end}

    until(lambda: not behind(), f"{name} to commit all of {topic}")


def await_archived(kafka: str, task: Task, topic: str) -> None:
    """Wait until the archive has committed every record that lies in `topic` now."""
    last = {record.partition: record.offset for record in read_all(kafka, topic)}

    def archived() -> bool:
        done = committed_offsets(kafka, f"driftline-{task.name}-archive", topic)
        return all(done.get(partition, 0) > offset for partition, offset in last.items())

    until(archived, f"the archive of {topic}", every_s=0.5)


def await_predictions(kafka: str, task: Task, wanted: set[str]) -> list[dict[str, Any]]:
    """Wait until every wanted event id has a prediction and the events are committed; all predictions there are."""
    topics = Topics.of(task)

    def missing() -> set[str]:
        return wanted - {row["event_id"] for row in values(kafka, topics.predictions)}

    until(lambda: not missing(), f"{len(wanted)} predictions", every_s=1.0)
    await_consumed(kafka, task, "serve", topics.events)
    return values(kafka, topics.predictions)

"""A guarded command: what it inherits, how it ends, and that it never outlives its owner."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from infra.guard import NOT_STARTED, Guarded

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180.0
FOREVER = ["sleep", "1000"]
STUBBORN = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def guarded(argv: Sequence[str], log: Path, *, cwd: Path | None = None, keep: Sequence[int] = ()) -> Guarded:
    with log.open("ab") as out:
        return Guarded(argv, {"PATH": os.environ["PATH"], "ONLY": "this"}, out, cwd, keep)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_the_command_gets_its_environment_its_folder_and_no_input(log: Path, tmp_path: Path) -> None:
    process = guarded(["sh", "-c", "echo $ONLY $HOME $(pwd) $(cat); echo wrong >&2"], log, cwd=tmp_path)
    assert process.wait(PATIENCE_S) == 0
    assert process.poll() == 0
    assert process.stop() == 0
    assert log.read_text() == f"this {tmp_path}\nwrong\n"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 70", 70), ("kill -SEGV $$", 128 + 11)])
def test_the_exit_code_is_passed_on(script: str, code: int, log: Path) -> None:
    process = guarded(["sh", "-c", script], log)
    assert process.wait(PATIENCE_S) == code
    process.stop()


def test_what_cannot_be_started_is_named_in_the_log(log: Path) -> None:
    process = guarded(["no-such-program"], log)
    assert process.wait(PATIENCE_S) == NOT_STARTED
    process.stop()
    assert log.read_text() == "cannot start no-such-program: No such file or directory\n"


def test_stop_asks_first(log: Path) -> None:
    process = guarded(
        ["sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done"], log
    )
    until(lambda: log.read_text() == "ready\n", "the command to be ready")
    assert process.stop(PATIENCE_S) == 5
    assert log.read_text().endswith("bye\n")


def test_a_command_that_has_just_begun_hears_it_too(log: Path) -> None:
    assert [guarded(FOREVER, log).stop(PATIENCE_S) for _ in range(40)] == [128 + signal.SIGTERM] * 40


def test_stop_insists(log: Path) -> None:
    process = guarded(STUBBORN, log)
    until(lambda: log.read_text() == "ready\n", "the command to be ready")
    assert process.stop(0.1) == 128 + signal.SIGKILL
    assert gone(process.pid)


def test_kill_is_at_once_and_takes_what_the_command_has_started(log: Path) -> None:
    process = guarded(["sh", "-c", "sleep 1000 & echo $!; wait"], log)
    until(lambda: log.read_text().endswith("\n"), "the child's id")
    child = int(log.read_text())
    assert process.kill() == 128 + signal.SIGKILL
    until(lambda: gone(process.pid) and gone(child), "both to end")
    assert process.kill() == 128 + signal.SIGKILL  # again is fine


def test_what_a_command_leaves_behind_is_ended(log: Path) -> None:
    process = guarded(["sh", "-c", "sleep 1000 & echo $!"], log)
    assert process.wait(PATIENCE_S) == 0
    process.stop()
    child = int(log.read_text())
    until(lambda: gone(child), "the child to end")


def test_waiting_has_an_end(log: Path) -> None:
    process = guarded(FOREVER, log)
    try:
        with pytest.raises(TimeoutError, match=f"process {process.pid} still runs"):
            process.wait(0.01)
    finally:
        process.kill()


def test_a_lock_lasts_as_long_as_the_command(log: Path, tmp_path: Path) -> None:
    def free() -> bool:
        with (tmp_path / "lock").open("w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    with (tmp_path / "lock").open("w") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        process = guarded(FOREVER, log, keep=[ours.fileno()])
    assert not free()
    process.kill()
    until(free, "the lock to be free")


OWNER = """
import os, sys, time
from infra.guard import Guarded
with open(sys.argv[1], "ab") as log:
    one, two = Guarded(["sleep", "1000"], os.environ, log), Guarded(["sleep", "1000"], os.environ, log)
print(one.pid, two.pid, flush=True)
time.sleep(1000)
"""


def test_nothing_outlives_an_owner_that_was_killed(log: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pids = [int(word) for word in owner.stdout.readline().split()]
        guards = [psutil.Process(pid).ppid() for pid in pids]
        assert len({*pids, *guards}) == 4
        owner.kill()
    until(lambda: all(gone(pid) for pid in [*pids, *guards]), "commands and guards to end")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_command_does_not_outlive_its_guard(log: Path) -> None:
    process = guarded(STUBBORN, log)
    until(lambda: log.read_text() == "ready\n", "the command to be ready")
    os.kill(psutil.Process(process.pid).ppid(), signal.SIGKILL)
    until(lambda: gone(process.pid), "the command to end")
    process.stop()


def for_a_person(argv: Sequence[str], grace_s: float = 10.0) -> "subprocess.Popen[str]":
    """`python -m infra.guard -- ARGV` in another mood: how long it waits after TERM can be chosen."""
    script = (
        f"import sys; from infra import guard; guard.GRACE_S = {grace_s}; sys.exit(guard.main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, "--", *argv],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_end_of_input_ends_the_command_and_a_stubborn_one_is_killed() -> None:
    with for_a_person(STUBBORN, grace_s=0.2) as guard:
        assert guard.stdout
        assert guard.stdin
        assert guard.stdout.readline() == "ready\n"
        guard.stdin.write("what is typed does not matter\n")
        guard.stdin.close()
        assert guard.wait(PATIENCE_S) == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_command(number: signal.Signals) -> None:
    script = "trap 'exit 6' TERM; trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done"
    with for_a_person(["sh", "-c", script]) as guard:
        assert guard.stdout
        assert guard.stdout.readline() == "ready\n"
        guard.send_signal(number)
        assert guard.wait(PATIENCE_S) == {signal.SIGTERM: 6, signal.SIGINT: 7}[number]


@pytest.mark.parametrize("arguments", [[], ["--"], ["sleep", "1"], ["--wrong", "1", "--", "true"]])
def test_wrong_use_is_told(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "infra.guard", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")

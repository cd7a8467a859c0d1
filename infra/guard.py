"""A process that cannot outlive whoever started it, even when that one is ended by kill -9.

Between the owner and the command stands a guard: a small Python process that holds the read end of a pipe
whose only write end the owner has. When the owner dies, however it dies, the pipe ends and the guard ends the
command: TERM, then KILL after GRACE_S. When the guard itself is killed, Linux kills the command
(PR_SET_PDEATHSIG; elsewhere that one case is not covered). TERM and INT sent to the guard reach the command;
its exit code is passed on, 128+n for signal n.

    python -m infra.guard -- COMMAND ...        # for a person: ends when standard input ends
    Guarded([COMMAND, ...], env, log)           # for a program

The guard is run by file name with `-I -S`: this file imports the standard library only, and starts in 20 ms.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

GRACE_S = 10.0
PR_SET_PDEATHSIG = 1
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
NOT_STARTED = 127  # a shell's exit code for a command that cannot be run


class Guarded:
    """A running command under its guard.

    `pid` is the command's own process id and `log` gets all of its output. `keep` are file descriptors that
    the command inherits; a lock (flock) on one of them then lasts as long as the command lives.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: IO[bytes],
        cwd: Path | None = None,
        keep: Sequence[int] = (),
    ) -> None:
        read, write = os.pipe()
        try:
            # A session of its own keeps a terminal's Ctrl-C away: the owner decides what stops when.
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, "--report", str(write), "--", *argv],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=dict(env), cwd=cwd,
                pass_fds=(write, *keep), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write)
        with os.fdopen(read) as report:
            said = report.readline()
        if not said:
            raise OSError(f"the guard of {argv[0]} ended with exit code {self._guard.wait()} before it began")
        self.pid = int(said)

    def poll(self) -> int | None:
        """None while it runs, else its exit code."""
        return self._guard.poll()

    def wait(self, timeout_s: float) -> int:
        """Its exit code once it has ended; TimeoutError."""
        try:
            return self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} still runs after {timeout_s:g} s") from None

    def stop(self, timeout_s: float = GRACE_S) -> int:
        """Ask it to end (TERM), insist (KILL) after `timeout_s`, and return its exit code."""
        if self.poll() is None:
            self._guard.terminate()
            try:
                self.wait(timeout_s)
            except TimeoutError:
                self.kill()
        return self._reap()

    def kill(self) -> int:
        """KILL the command and its process group at once, as a crash would, and return its exit code."""
        if self.poll() is None:
            _signal_group(self.pid, signal.SIGKILL)
            try:
                self.wait(GRACE_S)
            except TimeoutError:  # the guard itself is stopped or stuck; its end takes the command with it
                self._guard.kill()
        return self._reap()

    def _reap(self) -> int:
        if self._guard.stdin:
            self._guard.stdin.close()
        return self._guard.wait()


def main(args: Sequence[str]) -> int:
    """The guard's own program; returns the exit code that it ends with."""
    options, dashes, argv = _split(args)
    if not dashes or not argv or (options and (len(options) != 2 or options[0] != "--report")):
        print("usage: python -m infra.guard -- COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in WATCHED:
        signal.signal(number, lambda *_: None)  # the number arrives through the wake-up pipe
    report = int(options[1]) if options else -1
    if options:
        os.set_inheritable(report, False)
    child = _spawn(argv)
    if options:
        os.write(report, b"%d\n" % child)
        os.close(report)
    status = _watch(child, wake)
    _signal_group(child, signal.SIGKILL)  # what the command itself has left behind
    return status


def _split(args: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in args:
        return list(args), False, []
    at = list(args).index("--")
    return list(args[:at]), True, list(args[at + 1 :])


def _spawn(argv: Sequence[str]) -> int:
    guard = os.getpid()
    # A signal that reaches the child while it still has the guard's handlers would be swallowed, so it waits.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    child = os.fork()
    if not child:
        _become(argv, guard, mask)
    with suppress(OSError):  # here and in the child, so that no signal comes before there is a group
        os.setpgid(child, child)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return child


def _become(argv: Sequence[str], guard: int, mask: set[int | signal.Signals]) -> NoReturn:
    """In the forked child: tie its life to the guard's, then turn into the command."""
    try:
        signal.set_wakeup_fd(-1)
        for number in WATCHED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:  # it died before the line above could tie us to it
                os._exit(NOT_STARTED)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.execvp(argv[0], list(argv))
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _watch(child: int, wake: int) -> int:
    """Wait for the command, passing signals on, ending it when standard input ends. Returns its exit code."""
    watched = [wake, 0]
    kill_at = float("inf")
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if time.monotonic() >= kill_at:
            _signal_group(child, signal.SIGKILL)
            kill_at = float("inf")
        left = None if kill_at == float("inf") else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select(watched, [], [], left)
        if wake in ready:
            for number in os.read(wake, 512):
                if number in (signal.SIGTERM, signal.SIGINT):
                    _signal_group(child, number)
        if 0 in ready and not os.read(0, 4096):  # the owner has died, or let go
            watched.remove(0)
            _signal_group(child, signal.SIGTERM)
            kill_at = time.monotonic() + GRACE_S


def _signal_group(child: int, number: int) -> None:
    try:
        os.killpg(child, number)
    except (ProcessLookupError, PermissionError):  # all dead; macOS then speaks of permission
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Keeps the roles of one installation running: starts them, restarts what ends, stops them in reverse."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from infra.disk import usable
from infra.errors import UserError
from infra.guard import Guarded

FIRST_DELAY_S, LAST_DELAY_S = 0.5, 10.0  # before a restart; doubles from one to the other
HEALTHY_S = 60.0  # a role that has lived so long starts again with the first delay
QUICK_DEATHS = 8  # so many in a row, and waiting longer would not help
# A role ends with this code (EX_SOFTWARE in sysexits.h) when it must start again from its last commit, as after
# losing a partition to another worker: it comes back at once, and that is no crash. But a role that can do
# nothing else than that has a fault which a person must see.
AGAIN, MOST_AGAIN = 70, 24
QUOTED_LINES = 12

State = Literal["running", "waiting", "failed", "stopped"]


class RoleStatus(NamedTuple):
    """What a person wants to see of a role; `pid` is the role's own process, None while it does not run."""

    name: str
    pid: int | None
    restarts: int
    state: State


@dataclass
class _Role:
    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    process: Guarded
    started: float
    state: State = "running"
    deaths: int = 0  # quick ones in a row
    again: int = 0  # quick ends with AGAIN in a row
    restarts: int = 0
    restart_at: float = 0.0


class Supervisor:
    """Processes under guard, each with a log file `log_dir`/NAME.log.

    A role that ends is started again: after a wait that doubles from death to death, at once when its exit
    code is AGAIN. There is no thread in here: whoever owns it calls `poll` a few times a second. `clock` gives
    seconds that only grow. Roles end with this process, however it ends.
    """

    def __init__(self, log_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._log_dir = log_dir
        self._clock = clock
        self._roles: dict[str, _Role] = {}

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start the command `argv` with exactly the environment `env` as role `name`. Raises UserError."""
        if name in self._roles:
            raise ValueError(f"there is a role {name!r} already")
        self._roles[name] = _Role(name, argv, env, self._spawn(name, argv, env), self._clock())

    def poll(self) -> None:
        """Restart what has ended and waited long enough; UserError when a role dies again and again."""
        now = self._clock()
        for role in self._roles.values():
            if role.state == "running" and role.process.poll() is not None:
                self._bury(role, now)
            if role.state == "waiting" and now >= role.restart_at:
                role.process = self._spawn(role.name, role.argv, role.env)
                role.started, role.state = now, "running"
                role.restarts += 1

    def kill(self, name: str) -> None:
        """End a role as a crash would (SIGKILL); `poll` restarts it."""
        self._roles[name].process.kill()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop all roles, the last started first, giving each `timeout_s` to end by itself."""
        for role in reversed(self._roles.values()):
            role.process.stop(timeout_s)
            role.state = "stopped"

    def status(self) -> list[RoleStatus]:
        """The roles in the order in which they were started."""
        return [
            RoleStatus(
                role.name, role.process.pid if role.state == "running" else None, role.restarts, role.state
            )
            for role in self._roles.values()
        ]

    def log_path(self, name: str) -> Path:
        """Where the output of role `name` goes."""
        return self._log_dir / f"{name}.log"

    def _spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> Guarded:
        with usable(self._log_dir, "choose another data folder"):
            self._log_dir.mkdir(parents=True, exist_ok=True)
            with self.log_path(name).open("ab") as log:
                return Guarded(argv, env, log)

    def _bury(self, role: _Role, now: float) -> None:
        code = role.process.stop()  # it has ended; this closes the pipe to its guard
        if now - role.started >= HEALTHY_S:
            role.deaths = role.again = 0
        if code == AGAIN:
            role.again += 1
            delay = 0.0
        else:
            role.deaths += 1
            delay = min(FIRST_DELAY_S * 2 ** (role.deaths - 1), LAST_DELAY_S)
        if role.deaths >= QUICK_DEATHS or role.again >= MOST_AGAIN:
            role.state = "failed"
            raise self._given_up(role, code)
        role.restart_at, role.state = now + delay, "waiting"

    def _given_up(self, role: _Role, code: int) -> UserError:
        log = self.log_path(role.name)
        quote = "\n".join(f"    {line}" for line in last_lines(log, QUOTED_LINES))
        times = f"{role.deaths + role.again} times in a row"
        return UserError(
            f"{role.name} ended {times}, at last with exit code {code}; its last words:\n{quote}",
            f"see {log} for all of them",
        )


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a text file of any size; none when there is no file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16_384))
        return file.read().decode(errors="replace").splitlines()[-count:]

"""Roles that end come back, later and later, and one that cannot stay up is told; time is a number here."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.errors import UserError
from infra.supervisor import (
    AGAIN,
    FIRST_DELAY_S,
    HEALTHY_S,
    LAST_DELAY_S,
    MOST_AGAIN,
    QUICK_DEATHS,
    RoleStatus,
    Supervisor,
    last_lines,
)

ENV = {"PATH": os.environ["PATH"]}
FOREVER = ["sleep", "1000"]


class Clock:
    """Seconds that only this test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def roles(tmp_path: Path, clock: Clock) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs", clock)
    yield supervisor
    supervisor.stop()


def status(roles: Supervisor, name: str = "role") -> RoleStatus:
    return next(found for found in roles.status() if found.name == name)


def await_end(roles: Supervisor, name: str = "role") -> RoleStatus:
    """Poll until the process that runs now was seen to have ended."""
    before = status(roles, name)
    deadline = time.monotonic() + 180
    while status(roles, name)[:3] == before[:3]:
        assert time.monotonic() < deadline, f"{name} does not end"
        time.sleep(0.005)
        roles.poll()
    return status(roles, name)


def test_a_role_runs_with_its_environment_and_its_own_log(roles: Supervisor) -> None:
    roles.start("role", ["sh", "-c", "echo $MINE $HOME; exec sleep 1000"], {**ENV, "MINE": "yes"})
    name, pid, restarts, state = status(roles)
    assert (name, restarts, state) == ("role", 0, "running")
    assert psutil.pid_exists(pid or 0)
    while not roles.log_path("role").read_text():
        time.sleep(0.005)
    assert roles.log_path("role").read_text() == "yes\n"
    with pytest.raises(ValueError, match="a role 'role' already"):
        roles.start("role", FOREVER, ENV)


def test_a_role_that_was_killed_comes_back_after_the_first_delay(roles: Supervisor, clock: Clock) -> None:
    roles.start("role", FOREVER, ENV)
    roles.start("other", FOREVER, ENV)
    first, other = status(roles), status(roles, "other")
    roles.kill("role")
    assert await_end(roles) == ("role", None, 0, "waiting")
    clock.now += FIRST_DELAY_S * 0.9
    roles.poll()
    assert status(roles).state == "waiting"
    clock.now += FIRST_DELAY_S * 0.2
    roles.poll()
    back = status(roles)
    assert (back.state, back.restarts) == ("running", 1)
    assert back.pid not in (None, first.pid)
    assert status(roles, "other") == other


def test_delays_double_up_to_the_longest_and_then_it_gives_up_with_the_last_words(
    roles: Supervisor, clock: Clock
) -> None:
    roles.start("role", ["sh", "-c", "echo first; echo cannot go on; exit 3"], ENV)
    for death in range(1, QUICK_DEATHS):
        assert await_end(roles).state == "waiting"
        delay = min(FIRST_DELAY_S * 2 ** (death - 1), LAST_DELAY_S)
        clock.now += delay - 0.01
        roles.poll()
        assert status(roles).state == "waiting"
        clock.now += 0.02
        roles.poll()
        assert status(roles) == ("role", status(roles).pid, death, "running")
    with pytest.raises(UserError) as caught:
        await_end(roles)
    assert f"role ended {QUICK_DEATHS} times in a row, at last with exit code 3" in caught.value.message
    assert caught.value.message.endswith("    cannot go on")
    assert str(roles.log_path("role")) in caught.value.fix
    assert status(roles).state == "failed"
    clock.now += 1000
    roles.poll()  # it was told once, and is left alone
    assert status(roles).state == "failed"


def test_a_healthy_minute_forgives_earlier_deaths(roles: Supervisor, clock: Clock) -> None:
    roles.start("role", FOREVER, ENV)
    for _ in range(QUICK_DEATHS + 2):
        clock.now += HEALTHY_S
        roles.kill("role")
        assert await_end(roles).state == "waiting"
        clock.now += FIRST_DELAY_S
        roles.poll()
        assert status(roles).state == "running"


def test_a_role_that_asks_to_start_again_does_so_at_once_and_is_no_crash(
    roles: Supervisor, clock: Clock, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    left.write_text("x" * (QUICK_DEATHS + 2))
    script = f"[ -s {left} ] || exec sleep 1000; truncate -s -1 {left}; exit {AGAIN}"
    roles.start("role", ["sh", "-c", script], ENV)
    for restarts in range(1, QUICK_DEATHS + 3):
        found = await_end(roles)  # the clock stands still
        assert (found.state, found.restarts) == ("running", restarts)
    roles.kill("role")
    assert await_end(roles).state == "waiting"
    clock.now += FIRST_DELAY_S  # the first delay, as if nothing had been before
    roles.poll()
    assert status(roles).state == "running"


def test_a_role_that_does_nothing_but_start_again_is_told(roles: Supervisor) -> None:
    roles.start("role", ["sh", "-c", f"echo lost it; exit {AGAIN}"], ENV)
    while status(roles).restarts < MOST_AGAIN - 1:
        await_end(roles)
    with pytest.raises(UserError, match=f"ended {MOST_AGAIN} times in a row.* exit code {AGAIN}") as caught:
        await_end(roles)
    assert "lost it" in caught.value.message
    assert status(roles) == ("role", None, MOST_AGAIN - 1, "failed")


def test_the_exit_code_for_again_is_the_one_that_workers_use() -> None:
    from streams.partitions import EXIT_AGAIN

    assert EXIT_AGAIN == AGAIN


def test_stop_ends_the_last_started_first_and_for_good(
    roles: Supervisor, clock: Clock, tmp_path: Path
) -> None:
    order = tmp_path / "order"
    for name in ("a", "b", "c"):
        script = f"trap 'echo {name} >> {order}; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
        roles.start(name, ["sh", "-c", script], ENV)
        while not roles.log_path(name).read_text():
            time.sleep(0.005)
    pids = [found.pid for found in roles.status()]
    roles.stop(30)
    assert order.read_text().split() == ["c", "b", "a"]
    assert [found.state for found in roles.status()] == ["stopped"] * 3
    assert not any(psutil.pid_exists(pid or 0) for pid in pids)
    clock.now += 100
    roles.poll()
    roles.stop()
    assert [found.state for found in roles.status()] == ["stopped"] * 3


def test_a_role_that_waits_is_stopped_too(roles: Supervisor, clock: Clock) -> None:
    roles.start("role", ["false"], ENV)
    assert await_end(roles).state == "waiting"
    roles.stop()
    clock.now += 100
    roles.poll()
    assert status(roles) == ("role", None, 0, "stopped")


def test_logs_that_cannot_be_written_are_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot use .*logs"):
        Supervisor(tmp_path / "logs").start("role", FOREVER, ENV)


def test_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert last_lines(path, 3) == []
    path.write_text("one\ntwo\n")
    assert last_lines(path, 3) == ["one", "two"]
    path.write_bytes(b"\xff" * 50_000 + b"\n" + b"".join(b"line %d\n" % n for n in range(5000)))
    assert last_lines(path, 2) == ["line 4998", "line 4999"]

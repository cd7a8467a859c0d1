"""The archive on a real ClickHouse server: the shared contract, and what only a network can do wrong."""

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from infra.clickhouse import Archive, create_tables, open_archive
from infra.errors import UserError
from tests.archive_contract import ArchiveContract, PastRowsContract

_numbers = itertools.count()


@pytest.fixture
def database(clickhouse_server: str) -> Iterator[str]:
    """Address of a database that nobody used before; dropped afterwards."""
    parts = urlsplit(clickhouse_server)
    name = f"contract_{next(_numbers)}"
    yield f"clickhouse://{parts.netloc}/{name}"
    cleaner = open_archive(clickhouse_server)
    cleaner.execute(f"DROP DATABASE IF EXISTS {name}")
    cleaner.close()


@pytest.fixture
def archive(database: str) -> Iterator[Archive]:
    opened = open_archive(database)
    yield opened
    opened.close()


class TestServer(ArchiveContract):
    pass


class TestServerPast(PastRowsContract):
    pass


def test_several_clients_see_one_history(database: str) -> None:
    one, two = open_archive(database), open_archive(database)
    create_tables(one)
    create_tables(two)
    one.insert("alerts", ["task", "alert_id"], [["t"], ["a1"]])
    assert two.query("SELECT alert_id FROM alerts") == [("a1",)]
    one.close()
    two.close()


def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:  # bound, so nobody else gets the port, but not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot reach ClickHouse at 127.0.0.1:{port}") as caught:
            open_archive(f"clickhouse://127.0.0.1:{port}/db")
    assert caught.value.fix == "start the server, or check DRIFTLINE_ARCHIVE"
    assert not caplog.records  # the driver would log a traceback


def test_a_wrong_password_is_not_repeated_in_the_message(clickhouse_server: str) -> None:
    address = urlsplit(clickhouse_server)
    with pytest.raises(UserError, match="password") as caught:
        open_archive(f"clickhouse://default:opensesame@{address.hostname}:{address.port}/db")
    assert "DRIFTLINE_ARCHIVE" in caught.value.fix
    assert "opensesame" not in str(caught.value)


def test_a_broken_connection_fails_one_call_and_not_the_next(database: str) -> None:
    address = urlsplit(database)
    with Relay((str(address.hostname), int(address.port or 0))) as relay:
        archive = open_archive(f"clickhouse://127.0.0.1:{relay.port}{address.path}")
        create_tables(archive)
        relay.accepting = False
        relay.cut()
        with pytest.raises(UserError, match="cannot reach ClickHouse"):
            archive.insert("alerts", ["task", "alert_id"], [["t"], ["a1"]])
        relay.accepting = True
        archive.insert("alerts", ["task", "alert_id"], [["t"], ["a1"]])
        assert archive.query("SELECT alert_id FROM alerts") == [("a1",)]
        archive.close()


class Relay:
    """A TCP connection to the server with a plug that a test can pull."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.accepting = True
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Relay":
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        while self._open:
            end = self._open.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self.accepting:
                client.close()
                continue
            server = socket.create_connection(self._target)
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

"""The archive: one history in ClickHouse, embedded (chdb) or on a server (clickhouse-driver), same SQL.

Reading order: the seam (`Archive`), its two adapters, `open_archive`, `create_tables`. The tables themselves
are in infra.tables.
"""

import contextlib
import fcntl
import logging
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from infra.errors import UserError
from infra.tables import ARROW_TYPES, TABLES, Columns, arrow_rows

DATABASE = "driftline"
CONNECT_SECONDS = 5
QUERY_SECONDS = 120
ADDRESS_FIX = 'use "chdb://FOLDER" (embedded) or "clickhouse://HOST:PORT/DATABASE" (a server)'
FIXES = {  # ClickHouse's error code: what a person can do about it
    60: "make the tables first: start the archive role once",
    164: "give the user of DRIFTLINE_ARCHIVE the right to write",
    192: "check the user in DRIFTLINE_ARCHIVE",
    193: "check the password in DRIFTLINE_ARCHIVE",
    241: "give ClickHouse more memory, or ask for a shorter span of time",
    243: "make room on the archive's disk",
    497: "give the user of DRIFTLINE_ARCHIVE the right to write",
    516: "check the user and the password in DRIFTLINE_ARCHIVE",
}


class Archive(Protocol):
    """What a history store must do; all that the archiver, the report and the command line need.

    Safe to call from several threads. An engine that fails (not there, full, wrong SQL) raises UserError.
    """

    def execute(self, sql: str) -> None:
        """Runs a statement that returns no rows."""

    def insert(self, table: str, columns: Sequence[str], rows_as_columns: Columns) -> None:
        """Appends n rows given as one sequence of length n a column: one block, all of it or nothing.

        `table` is one of infra.tables.TABLES; columns left out get ClickHouse's default (0 or ""). Types and
        errors: see infra.tables.arrow_rows. n = 0 does nothing.
        """

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """All rows of a SELECT of scalar columns, as int, float, str or None."""

    def query_arrow(self, sql: str) -> pa.Table:
        """The same as columns, for many rows: each of the Arrow type that infra.tables.ARROW_TYPES says."""

    def close(self) -> None:
        """Gives the engine back; a closed archive is not used again. May be called twice."""


def literal(text: str) -> str:
    """A string as an SQL literal, safe with any content, for both engines."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class ChdbArchive:
    """ClickHouse inside this process, on a folder of its own.

    chdb locks the folder to one process, and a process to one folder at a time: only the archive role opens
    it while the system runs. Raises UserError where the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._lock = threading.Lock()
        self._session: Any = None
        if "?" in str(self._folder):  # chdb would read what follows as parameters
            raise UserError(
                f"the archive's folder {self._folder} has a ? in its name", "choose another folder"
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the archive's folder {self._folder}: {error.strerror}",
                "choose another folder (DRIFTLINE_ARCHIVE or DRIFTLINE_DATA)",
            ) from error
        self._session = self._translated("open it", self._connect)
        self.execute(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
        self.execute(f"USE {DATABASE}")

    def execute(self, sql: str) -> None:
        """See Archive."""
        with self._lock:
            self._translated(sql, lambda: self._open().query(sql))

    def insert(self, table: str, columns: Sequence[str], rows_as_columns: Columns) -> None:
        """See Archive. Arrow goes straight to the engine: 3 to 5 ms for 100 rows, 6 to 12 ms for 5,000."""
        rows = arrow_rows(table, columns, rows_as_columns)
        if not rows.num_rows:
            return
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        stream = sink.getvalue().to_pybytes()
        sql = f"INSERT INTO {table} ({', '.join(columns)})"
        with self._lock:
            self._translated(sql, lambda: self._send(sql, stream))

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """See Archive."""
        return list(zip(*(column.to_pylist() for column in self.query_arrow(sql).columns), strict=True))

    def query_arrow(self, sql: str) -> pa.Table:
        """See Archive."""
        with self._lock:
            answer: bytes = self._translated(sql, lambda: self._open().query(sql, "Arrow").bytes())
        if not answer:  # a statement without columns
            return pa.table({})
        return pa.ipc.open_file(answer).read_all()

    def close(self) -> None:
        """See Archive. Frees the folder for another process."""
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None

    def _connect(self) -> Any:
        # chdb obeys a config.xml in the working directory, even over the folder that it is given, both when
        # it is imported and when it connects. Our own folder has none.
        with contextlib.chdir(self._folder):
            import chdb.session

            session_type: Any = chdb.session.Session
            return session_type(str(self._folder))

    def _send(self, sql: str, stream: bytes) -> None:
        with self._open().send_insert(sql, "ArrowStream") as inserter:
            inserter.append(stream)
            inserter.finish()

    def _open(self) -> Any:
        if self._session is None:
            raise UserError(f"the archive in {self._folder} is closed")
        return self._session

    def _translated(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:  # chdb's own errors derive from it
            if self._session is None and (owner := self._owner()):
                raise UserError(
                    f"{owner} has the archive in {self._folder} open",
                    "only one process can: stop that one (the archive role) first, or keep the archive on a"
                    " ClickHouse server (DRIFTLINE_ARCHIVE)",
                ) from error
            raise _refused(f"the archive in {self._folder}", what, str(error)) from error

    def _owner(self) -> str:
        """Who holds the engine's lock on the folder, or "". chdb only prints that; we try its lock file."""
        try:
            with (self._folder / "status").open("rb") as status:
                pid = re.search(rb"PID: (\d+)", status.read())
                fcntl.flock(status, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"process {pid[1].decode()}" if pid else "another process"
        except OSError:
            pass
        return ""


class ServerArchive:
    """A ClickHouse server over its native protocol; the database is made when it is not there.

    Raises UserError when the server cannot be reached or refuses. After a broken connection the next call
    opens a new one; the caller repeats the call that failed (inserts are idempotent).
    """

    def __init__(
        self, host: str, port: int, database: str, user: str = "default", password: str = ""
    ) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", database):
            raise UserError(
                f"{database!r} cannot be a ClickHouse database's name", "use letters, digits and _"
            )
        self._where = f"ClickHouse at {host}:{port}"
        self._lock = threading.Lock()  # the driver allows one query a connection at a time
        self._client = self._connect(host, port, "", user, password)
        self.execute(f"CREATE DATABASE IF NOT EXISTS {database}")
        self.close()
        self._client = self._connect(host, port, database, user, password)

    def execute(self, sql: str) -> None:
        """See Archive."""
        self._run(sql)

    def insert(self, table: str, columns: Sequence[str], rows_as_columns: Columns) -> None:
        """See Archive."""
        rows = arrow_rows(table, columns, rows_as_columns)
        if rows.num_rows:
            sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES"
            self._run(sql, [column.to_pylist() for column in rows.columns], columnar=True)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """See Archive."""
        return [tuple(row) for row in self._run(sql)]

    def query_arrow(self, sql: str) -> pa.Table:
        """See Archive."""
        columns, types = self._run(sql, columnar=True, with_column_types=True)
        kinds = [ARROW_TYPES.get(kind) for _, kind in types]
        arrays = [
            pa.array(values, kind) for values, kind in zip(columns or [()] * len(kinds), kinds, strict=True)
        ]
        return pa.table(arrays, [name for name, _ in types])

    def close(self) -> None:
        """See Archive."""
        with self._lock:
            self._client.disconnect()

    @staticmethod
    def _connect(host: str, port: int, database: str, user: str, password: str) -> Any:
        import clickhouse_driver

        # It logs every failure with a traceback as well as raising it; ours is to say it once, in words.
        logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)
        return clickhouse_driver.Client(
            host,
            port,
            database=database,
            user=user,
            password=password,
            client_name="driftline",
            connect_timeout=CONNECT_SECONDS,
            send_receive_timeout=QUERY_SECONDS,
        )

    def _run(self, sql: str, columns: list[list[Any]] | None = None, **options: bool) -> Any:
        from clickhouse_driver import errors

        with self._lock:
            try:
                return self._client.execute(sql, columns, **options)
            except (errors.NetworkError, errors.SocketTimeoutError, EOFError, OSError) as error:
                self._client.disconnect()  # half an answer may be waiting in it
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise UserError(
                    f"cannot reach {self._where} ({reason})", "start the server, or check DRIFTLINE_ARCHIVE"
                ) from error
            except errors.Error as error:
                raise _refused(self._where, sql, str(error)) from error


def _refused(where: str, sql: str, reason: str) -> UserError:
    """The engine's own words without its stack trace, and the start of the statement they are about."""
    code = re.search(r"Code: (\d+)", reason)
    words = re.sub(r"^.*?DB::Exception: ", "", reason.partition("Stack trace")[0], count=1, flags=re.DOTALL)
    short = " ".join(words.split()).rstrip(" ,.")[:300]
    statement = " ".join(sql.split())[:120]
    fix = FIXES.get(int(code[1]), "") if code else ""
    return UserError(f"{where} refused: {short} (in: {statement})", fix)


def open_archive(url: str) -> Archive:
    """The archive behind "chdb://FOLDER" or "clickhouse://[USER[:PASSWORD]@]HOST[:PORT][/DATABASE]".

    Raises UserError when the address is malformed or the engine cannot be opened.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "chdb" and rest:
        return ChdbArchive(Path(rest))
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 9000
    except ValueError as error:  # a port that is no number
        raise UserError(f"the archive's address is malformed: {error}", ADDRESS_FIX) from error
    if scheme != "clickhouse" or not host:
        raise UserError(f"{scheme}://… is not the address of an archive", ADDRESS_FIX)
    database = parts.path.strip("/") or DATABASE
    return ServerArchive(
        host, port, database, unquote(parts.username or "default"), unquote(parts.password or "")
    )


def create_tables(archive: Archive) -> None:
    """Makes the tables that are not there; the others only get the columns that they lack."""
    for table in TABLES.values():
        archive.execute(table.create_sql())
        there = {name for name, *_ in archive.query(f"DESCRIBE TABLE {table.name}")}
        for column in table.names:
            if column not in there:
                archive.execute(table.add_sql(column))

"""What every archive engine must do; run on chdb (tests/unit) and on a server (tests/system).

And what is read out of it as past features, which a slow search over all rows must find too.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore import history
from featurestore.history import BEGINNING_MS, PastView, rows_at, rows_between
from infra.clickhouse import Archive, create_tables, literal
from infra.errors import UserError
from infra.tables import ARROW_TYPES, TABLES

# Text that breaks careless quoting, careless encodings and careless pages.
NASTY = ["it's", 'a "quote"', "back\\slash", "new\nline", "nul\0byte", "naïve ✓ 数", "<script>", "';--", ""]

SAMPLE: dict[str, list[Any]] = {
    "String": ["a", "b", "c"],
    "Float64": [0.25, -1e300, 3.0],
    "Int64": [1, -(2**63), 2**63 - 1],
}
SAMPLE |= {"Int32": [0, -5, 2**31 - 1], "UInt8": [0, 1, 255]}
SAMPLE |= {"Array(Float32)": [[], [0.5, -1.5], [2.0**-149]]}

PREDICTION = ["task", "event_id", "score", "event_ms", "processed_ms", "source_partition", "source_offset"]


class ArchiveContract:
    """A subclass gives the fixture `archive`: an engine that is open, with a database nobody used before."""

    @pytest.fixture(autouse=True)
    def _tables(self, archive: Archive) -> None:
        create_tables(archive)

    def test_tables_can_be_made_again_and_keep_their_rows(self, archive: Archive) -> None:
        archive.insert("alerts", ["task", "alert_id"], [["t"], ["a1"]])
        create_tables(archive)
        assert archive.query("SELECT task, alert_id FROM alerts") == [("t", "a1")]

    @pytest.mark.parametrize("name", sorted(TABLES))
    def test_every_column_keeps_its_values(self, archive: Archive, name: str) -> None:
        table = TABLES[name]
        columns = [SAMPLE[kind] for _, kind in table.columns]
        archive.insert(name, table.names, columns)
        rows = archive.query(f"SELECT {', '.join(table.names)} FROM {name} ORDER BY {table.key[0]}")
        assert rows == list(zip(*columns, strict=True))
        assert [type(value) for value in rows[0]] == [type(column[0]) for column in columns]

    def test_columns_left_out_are_zero_or_empty(self, archive: Archive) -> None:
        archive.insert("labels", ["task"], [["t"]])
        assert archive.query("SELECT event_id, label, event_ms FROM labels") == [("", 0.0, 0)]

    def test_many_rows_as_columns(self, archive: Archive) -> None:
        values = [np.array([0.1, math.nan, -0.0], np.float32), [1.0, 2.0, 3.0]]
        columns = ["task", "entity_key", "late", "values"]
        archive.insert("features", columns, [["t", "naïve"], [1, -(2**63)], [0, 1], values])
        sql = "SELECT task, entity_key, late, values, values[2] AS v FROM features"
        found = archive.query_arrow(f"{sql} ORDER BY entity_key DESC")
        assert found.column_names == ["task", "entity_key", "late", "values", "v"]
        kinds = [TABLES["features"].type_of(name) for name in columns]
        assert [field.type for field in found.schema][:3] == [ARROW_TYPES[kind] for kind in kinds[:3]]
        assert found.column("v").type == pa.float32()
        assert found.column("task").to_pylist() == ["t", "naïve"]
        assert found.column("entity_key").to_pylist() == [1, -(2**63)]
        bits = np.array(found.column("values").to_pylist(), np.float32).view(np.int32)
        assert bits.tolist() == np.array(values, np.float32).view(np.int32).tolist()
        nothing = archive.query_arrow(f"{sql} WHERE task = 'nobody'")
        assert (nothing.num_rows, nothing.schema.types) == (0, found.schema.types)

    def test_numpy_bool_and_missing_values(self, archive: Archive) -> None:
        archive.insert(
            "metrics",
            ["task", "arm", "n", "auc", "ece"],
            [["t"] * 3, np.array(["a", "b", "c"]), np.arange(3, dtype=np.int32), [0.5, None, 1], np.zeros(3)],
        )
        rows = archive.query("SELECT arm, n, auc, ece FROM metrics ORDER BY arm")
        assert rows[0] == ("a", 0, 0.5, 0.0)
        assert math.isnan(rows[1][2])
        assert rows[2] == ("c", 2, 1.0, 0.0)
        archive.insert("predictions", ["task", "late"], [["t"], [True]])
        assert archive.query("SELECT late FROM predictions") == [(1,)]

    def test_the_same_positions_again_change_nothing(self, archive: Archive) -> None:
        rows = [["t"] * 4, list("abcd"), [0.1] * 4, [5] * 4, [9] * 4, [0, 0, 1, 1], [0, 1, 0, 1]]
        archive.insert("predictions", PREDICTION, rows)
        archive.insert("predictions", PREDICTION, rows)
        assert archive.query("SELECT count() FROM predictions FINAL WHERE task = 't'") == [(4,)]

    def test_the_newest_of_two_rows_with_one_key_wins(self, archive: Archive) -> None:
        for text, created in (("first", 1), ("third", 3), ("second", 2)):
            archive.insert(
                "alerts", ["task", "alert_id", "message", "created_ms"], [["t"], ["a"], [text], [created]]
            )
        assert archive.query("SELECT message FROM alerts FINAL") == [("third",)]

    @pytest.mark.parametrize("text", NASTY)
    def test_any_text_comes_back_and_can_be_asked_for(self, archive: Archive, text: str) -> None:
        archive.insert("alerts", ["task", "alert_id", "message"], [["t", "t"], ["a1", "a2"], [text, "other"]])
        assert archive.query(f"SELECT alert_id, message FROM alerts WHERE message = {literal(text)}") == [
            ("a1", text)
        ]

    def test_half_a_surrogate_pair_does_not_stop_the_stream(self, archive: Archive) -> None:
        archive.insert("alerts", ["task", "message"], [["t"], ["bad \ud800 text"]])
        assert archive.query("SELECT message FROM alerts") == [("bad ? text",)]

    def test_a_table_that_was_made_before_a_column_gets_it(self, archive: Archive) -> None:
        archive.execute("ALTER TABLE alerts DROP COLUMN severity")
        create_tables(archive)
        archive.insert("alerts", ["task", "severity"], [["t"], [0.25]])
        assert archive.query("SELECT severity FROM alerts") == [(0.25,)]

    def test_a_history_of_before_the_arms_goes_on_in_its_table(self, archive: Archive) -> None:
        """Rows in parts without the columns, and rows of a repeated position on both sides of the change."""
        new, old = ("arm", "explored", "propensity"), TABLES["predictions"]
        columns = tuple(column for column in old.columns if column[0] not in new)
        archive.execute("DROP TABLE predictions")
        archive.execute(replace(old, columns=columns).create_sql())
        archive.insert(
            "predictions", PREDICTION, [["t"] * 2, ["a", "b"], [0.1] * 2, [5] * 2, [9] * 2, [0] * 2, [0, 1]]
        )
        create_tables(archive)
        create_tables(archive)
        again = [["t"] * 2, ["b", "c"], [0.2] * 2, [5] * 2, [10] * 2, [0] * 2, [1, 2]]
        archive.insert(
            "predictions", [*PREDICTION, *new], [*again, ["champion", "canary"], [0, 1], [1.0, 0.25]]
        )
        found = "SELECT event_id, score, arm, explored, propensity FROM predictions FINAL ORDER BY event_id"
        wanted = [("a", 0.1, "", 0, 0.0), ("b", 0.2, "champion", 0, 1.0), ("c", 0.2, "canary", 1, 0.25)]
        assert archive.query(found) == wanted
        archive.execute("OPTIMIZE TABLE predictions FINAL")
        assert archive.query(found) == wanted

    def test_no_rows_is_no_insert(self, archive: Archive) -> None:
        archive.insert("labels", ["task", "label", "event_ms"], [[], [], np.array([])])
        assert archive.query("SELECT count() FROM labels") == [(0,)]

    def test_aggregates_of_nothing(self, archive: Archive) -> None:
        assert archive.query("SELECT event_ms FROM labels WHERE event_ms > 1") == []
        ((count, mean),) = archive.query("SELECT count(), avg(score) FROM predictions")
        assert count == 0
        assert math.isnan(mean)

    def test_statements_without_rows(self, archive: Archive) -> None:
        archive.insert("labels", ["task", "event_id"], [["t"], ["e"]])
        archive.execute("TRUNCATE TABLE labels")
        assert archive.query("SELECT count() FROM labels") == [(0,)]

    @pytest.mark.parametrize(
        ("table", "columns", "rows", "says"),
        [
            ("nowhere", ["task"], [["t"]], "no table 'nowhere'"),
            ("labels", ["task", "nope"], [["t"], [1]], "no column 'nope'"),
            ("labels", ["task"], [["t"], [1]], "1 names for 2 columns"),
            ("labels", ["task", "event_ms"], [["t"], [1, 2]], r"unequal lengths \[1, 2\]"),
        ],
    )
    def test_rows_that_do_not_fit(
        self, archive: Archive, table: str, columns: list[str], rows: list[Any], says: str
    ) -> None:
        with pytest.raises(ValueError, match=says):
            archive.insert(table, columns, rows)

    @pytest.mark.parametrize("values", [[1.5], [None], ["5"], np.array([math.nan])])
    def test_a_value_that_would_be_cut_is_refused(self, archive: Archive, values: Any) -> None:
        with pytest.raises(TypeError, match="Int64 column got values of type"):
            archive.insert("labels", ["event_ms"], [values])

    @pytest.mark.parametrize(
        ("column", "value", "says"),
        [
            ("event_ms", 2**63, "Int64 column got a number beyond its range"),
            ("event_id", None, "String column got values that are no text"),
        ],
    )
    def test_a_value_that_would_become_another_is_refused(
        self, archive: Archive, column: str, value: Any, says: str
    ) -> None:
        with pytest.raises(TypeError, match=says):
            archive.insert("labels", [column], [[value]])

    def test_wrong_sql_is_told_in_the_engines_words_without_its_stack(self, archive: Archive) -> None:
        with pytest.raises(UserError, match=r"(?i)unknown.*identifier.*nope.*in: SELECT nope FROM") as caught:
            archive.query("SELECT nope FROM predictions")
        assert "Stack trace" not in str(caught.value)
        assert "\n" not in caught.value.message
        assert archive.query("SELECT 1") == [(1,)]  # and the archive goes on

    def test_a_table_that_is_not_there_has_a_fix(self, archive: Archive) -> None:
        archive.execute("DROP TABLE versions")
        with pytest.raises(UserError) as caught:
            archive.query("SELECT * FROM versions")
        assert caught.value.fix.startswith("make the tables first")

    def test_threads_may_share_it(self, archive: Archive) -> None:
        def work(i: int) -> int:
            archive.insert("alerts", ["task", "alert_id"], [["t"], [str(i)]])
            return int(archive.query(f"SELECT count() FROM alerts WHERE alert_id = '{i}'")[0][0])

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(40))) == [1] * 40
        assert archive.query("SELECT count() FROM alerts") == [(40,)]

    def test_a_large_block(self, archive: Archive) -> None:
        n = 50_000
        ids = [f"event-{i}" for i in range(n)]
        columns = [
            ["t"] * n,
            ids,
            np.linspace(0, 1, n),
            np.arange(n),
            np.arange(n),
            np.zeros(n, int),
            np.arange(n),
        ]
        archive.insert("predictions", PREDICTION, columns)
        assert archive.query("SELECT count(), uniqExact(event_id), max(score) FROM predictions FINAL") == [
            (n, n, 1.0)
        ]

    def test_close_twice(self, archive: Archive) -> None:
        archive.close()
        archive.close()


# Few keys, times and places, so that ties are common; the keys are the ends of what a pseudonym can be, too.
_KEYS = st.sampled_from([-(2**63), 0, 2**63 - 1])
_MS = st.integers(0, 6)
_ROW = st.tuples(_KEYS, _MS, st.integers(0, 1), st.integers(0, 2), st.integers(0, 1))  # as in _NAMES
_NAMES = ["entity_key", "event_ms", "source_partition", "source_offset", "archived_ms"]
_SINCE = st.one_of(st.just(BEGINNING_MS), st.integers(-1, 7))
_ASKED = st.integers(-1, 6).flatmap(
    lambda low: st.lists(st.tuples(_KEYS, st.integers(low, 7), _SINCE), max_size=9)
)
_numbers = count()
Stored = list[tuple[int, int, int, int, int]]


class PastRowsContract:
    """A subclass gives the fixture `archive`, as above."""

    @pytest.fixture(autouse=True)
    def _tables(self, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
        create_tables(archive)
        archive.execute("SYSTEM STOP MERGES features")
        monkeypatch.setattr(history, "KEYS_AT_ONCE", 2)

    def test_rows_at_a_time_are_those_of_a_slow_search(self, archive: Archive) -> None:
        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(st.lists(_ROW, unique=True, max_size=12), _ASKED)
        def check(stored: Stored, asked: list[tuple[int, int, int]]) -> None:
            view = self._store(archive, stored)
            keys, until, since = np.array(asked, np.int64).reshape(-1, 3).T
            found, values = rows_at(archive, view, ["place", "hole"], keys, until, since)
            wanted = [self._search(stored, *one) for one in asked]
            assert [int(v) if f else None for f, v in zip(found, values[:, 0], strict=True)] == wanted
            assert np.isnan(values[:, 1]).all()
            assert np.isnan(values[~found]).all()

        check()

    def test_rows_between_two_times_come_once_and_in_order(self, archive: Archive) -> None:
        @settings(max_examples=30, suppress_health_check=list(HealthCheck))
        @given(st.lists(_ROW, unique=True, max_size=12), _MS, _MS)
        def check(stored: Stored, since: int, until: int) -> None:
            view = self._store(archive, stored)
            newest = {row[:4]: (row, place) for place, row in sorted(enumerate(stored), key=lambda r: r[1])}
            within = [(row, place) for row, place in newest.values() if since <= row[1] <= until]
            within.sort(key=lambda one: one[0][1:])
            rows = rows_between(archive, view, ["place"], since, until)
            times = [(row[1], row[2], row[3]) for row, _ in within]
            assert rows.event_ms.tolist() == [ms for ms, *_ in times]
            assert sorted(rows.values[:, 0].tolist()) == sorted(place for _, place in within)
            last = {row[0]: place for row, place in within}
            rows = rows_between(archive, view, ["place"], since, until, newest_only=True)
            assert dict(zip(rows.keys.tolist(), rows.values[:, 0].tolist(), strict=True)) == last
            assert len(rows.keys) == len(last)

        check()

    def test_rows_of_other_views_are_not_seen(self, archive: Archive) -> None:
        view = self._store(archive, [(3, 1, 0, 0, 0)])
        one, late = np.array([3]), np.array([9])
        for other in (
            PastView("it's", view.entity, view.view_hash, view.columns),
            PastView(view.task, "shop", view.view_hash, view.columns),
            PastView(view.task, view.entity, "another", view.columns),
        ):
            assert rows_at(archive, other, ["hole"], one, late, one * 0)[0].tolist() == [False]
        assert rows_at(archive, view, ["hole"], one, late, one * 0)[0].tolist() == [True]

    @staticmethod
    def _store(archive: Archive, stored: Stored) -> PastView:
        """Insert the rows, each with its place in the list, for a task of their own, in blocks that are not merged."""
        view = PastView(f"it's {next(_numbers)}", "card", "0a", ("hole", "place"))
        names = ["task", "entity", "view_hash", *_NAMES, "values"]
        for first in range(3):
            some = stored[first::3]
            same = [[text] * len(some) for text in (view.task, view.entity, view.view_hash)]
            columns = list(zip(*some, strict=True)) or [()] * len(_NAMES)
            values = [[math.nan, float(place)] for place in range(first, len(stored), 3)]
            archive.insert("features", names, [*same, *map(list, columns), values])
        return view

    @staticmethod
    def _search(stored: Stored, key: int, until: int, since: int) -> int | None:
        fitting = [(row[1:], place) for place, row in enumerate(stored) if row[0] == key and row[1] <= until]
        newest = max(fitting, default=None)
        return newest[1] if newest and newest[0][0] >= since else None

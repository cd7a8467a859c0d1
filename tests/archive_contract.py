"""What every archive engine must do; run on chdb (tests/unit) and on a server (tests/system)."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from infra.clickhouse import Archive, create_tables, literal
from infra.errors import UserError
from infra.tables import TABLES

# Text that breaks careless quoting, careless encodings and careless pages.
NASTY = ["it's", 'a "quote"', "back\\slash", "new\nline", "nul\0byte", "naïve ✓ 数", "<script>", "';--", ""]

SAMPLE: dict[str, list[Any]] = {
    "String": ["a", "b", "c"],
    "Float64": [0.25, -1e300, 3.0],
    "Int64": [1, -(2**63), 2**63 - 1],
}
SAMPLE |= {"Int32": [0, -5, 2**31 - 1], "UInt8": [0, 1, 255]}

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

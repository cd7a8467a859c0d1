"""What the archive role makes of the examples topic: the feature rows as they were served."""

import numpy as np
import pytest

from infra.tables import TABLES
from streams.archive import FEATURES, feature_rows, sources
from streams.rows import Rows
from streams.stage import StagePartition, codes
from streams.task import Task
from streams.topics import Topics
from streams.wire import EXAMPLES, KIND, Damaged, encode_examples
from tests.stream_records import HIDDEN, NOW_MS, Record, event, labels, sent, task

TRIPS = task()
KIND_OF_EXAMPLES = ((KIND, EXAMPLES),)


def some_rows(n: int = 3) -> Rows:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(n, len(TRIPS.numbers))).astype(np.float32)
    numbers[0, -1] = np.nan
    return Rows(
        [f"e{i}" for i in range(n)],
        np.arange(n) + NOW_MS,
        np.arange(n) + NOW_MS + 50,
        np.arange(n, dtype=np.int32),
        np.arange(n) + 2**40,
        np.arange(n) == 1,
        rng.integers(-(2**63), 2**63 - 1, (n, 2)),
        np.zeros((n, len(TRIPS.categories)), np.int64),
        np.zeros((n, len(TRIPS.number_fields))),
        numbers,
        TRIPS.rows_hash,
    )


def record(rows: Rows) -> Record:
    return Record(encode_examples(rows, np.zeros(len(rows), np.float32), "L1.1"), headers=KIND_OF_EXAMPLES)


def test_one_row_an_entity_and_event_with_the_features_bit_for_bit() -> None:
    rows = some_rows()
    made = [dict(zip(FEATURES, row, strict=True)) for row in feature_rows(TRIPS)(record(rows))]
    assert [row["entity"] for row in made] == ["driver"] * 3 + ["zone"] * 3
    for index, (entity, view) in enumerate(TRIPS.views.items()):
        columns = [TRIPS.numbers.index(name) for name in view.columns]
        for i, row in enumerate(row for row in made if row["entity"] == entity):
            assert (row["task"], row["view_hash"]) == ("trips", view.fingerprint)
            assert row["entity_key"] == rows.keys[i, index]
            place = (row["event_ms"], row["received_ms"], row["source_partition"], row["source_offset"])
            assert place == (NOW_MS + i, NOW_MS + i + 50, i, 2**40 + i)
            assert row["late"] == int(i == 1)
            assert np.array(row["values"], np.float32).tobytes() == rows.numbers[i, columns].tobytes()


DRIVER = '[[features]]\nentity = "driver"\n'
LAST = 'value = "city"\nlast = 2\n'


@pytest.mark.parametrize(
    "made",
    [
        task(entity=f'"driver"\n{LAST}{DRIVER}'),
        task(label_rate=f'["8m"]\n{DRIVER}{LAST}{DRIVER}value = "fare"\ndecay = ["1m"]'),
    ],
    ids=["first", "middle"],
)
def test_the_last_values_of_a_category_are_there_as_they_were_served(made: Task) -> None:
    events = [event(trip=f"t-{i}", city=f"c-{i}", at=NOW_MS + i) for i in range(4)]
    served = StagePartition(made, 0, HIDDEN).fold([sent(each, offset=i) for i, each in enumerate(events)])
    rows = [dict(zip(FEATURES, row, strict=True)) for row in feature_rows(made)(record(served.rows))]
    found = np.array([row["values"] for row in rows if row["entity"] == "driver"], np.float32)
    assert found.tobytes() == served.features.tobytes()
    of_last = found[:, made.views["driver"].columns.index("driver_city_last_1")]
    assert np.isnan(of_last[0])
    assert (of_last[1:] == codes(HIDDEN.column("city", ["c-0", "c-1", "c-2"]))).all()


def test_the_columns_are_those_of_the_table() -> None:
    table, columns, rows_of = sources(TRIPS)[Topics.of(TRIPS).examples]
    assert table == "features"
    assert set(columns) == set(TABLES["features"].names)
    assert len(rows_of(record(some_rows(2)))) == 4


def test_labels_in_the_same_topic_are_no_features() -> None:
    assert feature_rows(TRIPS)(labels(["e1"], [1.0])) == []


def test_rows_of_another_task_file_are_refused() -> None:
    with pytest.raises(Damaged, match="another version of the task file"):
        feature_rows(task(value='"tip"'))(record(some_rows()))

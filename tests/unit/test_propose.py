"""`driftline task new`: what is proposed for samples and answers, and that it is always a task."""

import json
import string
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from streams import guess
from streams.draft import Answers
from streams.propose import propose, unclear
from streams.task import Task, load_task
from streams.task_new import propose_task, read_sample
from streams.task_parse import parse_task

START = datetime(2024, 1, 30, 23, 0, tzinfo=UTC)
N = 200


def task_of(text: str) -> Task:
    return parse_task(text, "proposed.toml", Path("proposed.toml"))


def rides(**changes: Any) -> pa.Table:
    """Two hundred rides, one an hour, of ten drivers in four cities; a change of None drops a column."""
    columns: dict[str, Any] = {
        "ride_id": [f"r{i:05d}" for i in range(N)],
        "pickup_time": [START + timedelta(hours=i) for i in range(N)],
        "driver_id": [i % 10 for i in range(N)],
        "vehicle": [f"car {i % 7}" for i in range(N)],
        "fare": [5 + (i * 37 % 100) / 4 for i in range(N)],
        "passengers": [1 + i % 4 for i in range(N)],
        "city": [["Rome", "Oslo", "Lima", "Bern"][i % 4] for i in range(N)],
        "complained": [int(i % 11 == 0) for i in range(N)],
    }
    columns |= changes
    return pa.table({name: values for name, values in columns.items() if values is not None})


def test_a_sample_of_rides() -> None:
    text = propose(rides(), source="rides.parquet")
    task = task_of(text)
    assert (task.name, task.metric) == ("rides", "auc")
    assert (task.event.id, task.event.time, task.event.time_format) == ("ride_id", "pickup_time", "iso8601")
    assert [(e.name, e.field) for e in task.entities] == [("driver", "driver_id"), ("vehicle", "vehicle")]
    assert task.number_fields == ("fare", "passengers")
    # The model may know each of a few vehicles; drivers are people.
    assert task.categories == ("vehicle", "city")
    assert (task.label.field, task.label.missing) == ("complained", None)
    # A driver comes again every ten hours, so the middle window is the first one that holds two gaps.
    assert {"driver_count_24h", "driver_fare_mean_7d", "vehicle_label_rate_7d"} <= {*task.numbers}
    assert "# Proposed by `driftline task new` from 200 rows of rides.parquet.\n" in text


def test_answers_go_before_guesses() -> None:
    answers = Answers(
        name="trips",
        key="vehicle",
        label="late",
        delay="7d",
        missing="1",
        metric="auc",
        categories=("passengers",),
    )
    task = task_of(propose(rides(complained=None), answers))
    assert (task.name, task.event.key, task.label.field) == ("trips", "vehicle", "late")
    assert (task.label.delay_ms, task.label.window_ms, task.label.missing) == (
        604_800_000,
        1_209_600_000,
        1.0,
    )
    assert [entity.field for entity in task.entities] == ["vehicle", "driver_id"]
    assert "passengers" in task.categories


def test_answers_alone_are_enough() -> None:
    answers = Answers(id="id", time="at", key="user", label="ok", numbers=("price",), categories=("shop",))
    task = task_of(propose(None, answers))
    assert task.allowed == ("id", "at", "price", "shop", "user")
    assert "user_price_mean_24h" in task.numbers
    with pytest.raises(UserError) as caught:
        propose(None, Answers(id="id", key="user", label="ok"))
    assert str(caught.value) == (
        "without a sample the event's time field must be named\n  fix: answer time, or give a sample"
    )


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("refund_reason", ["none" if i % 11 else "rude" for i in range(N)], "it tells the label"),
        ("penalty", [0.0 if i % 11 else 50.0 + i for i in range(N)], "it tells the label"),
        (
            "comment",
            [f"my ride number {i} was fine" for i in range(N)],
            "nearly every row has a text of its own",
        ),
        ("essay", ["x" * 300 + str(i % 5) for i in range(N)], "nearly every row has a text of its own"),
        ("stops", [[i] for i in range(N)], "its type is not supported yet"),
        ("nothing", pa.nulls(N, pa.string()), "it is empty"),
        ("dropoff", [START + timedelta(hours=i + 1) for i in range(N)], "it is a second time"),
        ("driver_count_24h", [float(i % 9) for i in range(N)], "a feature has the same name"),
        ('the "tip"', [float(i % 9) for i in range(N)], "no field can have such a name"),
    ],
)
def test_what_cannot_be_a_field_is_left_out_with_a_reason(column: str, values: Any, reason: str) -> None:
    text = propose(rides(**{column: values}))
    assert f"# left out: {column} ({reason})\n" in text
    assert column not in task_of(text).allowed


def test_a_column_with_gaps_is_optional() -> None:
    fares = [float("nan") if i % 50 == 0 else i / 4 for i in range(N)]
    cities = [None if i % 50 == 0 else f"c{i % 3}" for i in range(N)]
    fields = {field.name: field for field in task_of(propose(rides(fare=fares, city=cities))).event.fields}
    assert (fields["fare"].required, fields["city"].required, fields["passengers"].required) == (
        False,
        False,
        True,
    )


@pytest.mark.parametrize(
    ("labels", "missing", "metric"),
    [
        ([1 if i % 100 == 0 else 0 for i in range(N)], None, "average_precision"),
        ([1.0 if i % 2 else 0.0 for i in range(N)], None, "auc"),
        ([i % 2 == 0 for i in range(N)], None, "auc"),
        ([1 if i % 9 == 0 else None for i in range(N)], 0.0, "auc"),  # only the ones are recorded
    ],
)
def test_labels_say_what_a_missing_one_means_and_which_metric(
    labels: list[Any], missing: float | None, metric: str
) -> None:
    task = task_of(propose(rides(complained=labels)))
    assert (task.label.field, task.label.missing, task.metric) == ("complained", missing, metric)


def test_what_the_sample_lacks_is_a_comment() -> None:
    text = propose(rides(ride_id=None, complained=None))
    assert 'id = "event_id"  # no column differs in every row: producers must add one' in text
    assert 'field = "label"  # the sample has no column of zeros and ones' in text
    assert 'delay = "1d"  # the sample cannot tell how long' in text
    task_of(text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([START + timedelta(hours=i) for i in range(N)], "iso8601"),
        ([date(2024, 1, 1) + timedelta(days=i) for i in range(N)], "iso8601"),
        ([(START + timedelta(hours=i)).isoformat() for i in range(N)], "iso8601"),
        ([(START + timedelta(hours=i)).strftime("%Y-%m-%dT%H:%M:%SZ") for i in range(N)], "iso8601"),
        ([1_700_000_000 + i for i in range(N)], "epoch_s"),
        ([1_700_000_000.25 + i for i in range(N)], "epoch_s"),
        ([1_700_000_000_000 + i for i in range(N)], "epoch_ms"),
        ([(START + timedelta(days=i)).strftime("%d/%m/%Y %H:%M") for i in range(N)], "%d/%m/%Y %H:%M"),
        # Twelve days only, so each text can be read both ways: the order of the rows tells.
        ([(START + timedelta(days=2 + i // 20)).strftime("%d/%m/%Y") for i in range(N)], "%d/%m/%Y"),
        ([(START + timedelta(days=2 + i // 20)).strftime("%m/%d/%Y") for i in range(N)], "%m/%d/%Y"),
        (
            [(START + timedelta(hours=i)).strftime("%d/%b/%Y:%H:%M:%S +0000") for i in range(N)],
            "%d/%b/%Y:%H:%M:%S %z",
        ),
    ],
)
def test_time_formats(values: list[Any], expected: str) -> None:
    task = task_of(propose(rides(pickup_time=values)))
    assert (task.event.time, task.event.time_format) == ("pickup_time", expected)


@pytest.mark.parametrize(
    ("name", "kind", "person"),
    [
        ("CUSTOMER_ID", "integer", True),
        ("userId", "text", True),
        ("account_number", "integer", True),
        ("driver", "text", True),
        ("user_feature_0", "text", False),
        ("user_age", "integer", False),
        ("identity", "text", False),
        ("visits_number", "integer", False),
        ("id", "integer", True),
        ("user", "number", False),
    ],
)
def test_what_looks_like_an_identity(name: str, kind: str, person: bool) -> None:
    column = guess.Column(name, kind, 100, 0, 10, 0.0, 9.0, 5)
    assert bool(guess.identity(column)) is person


def test_a_sample_without_a_time_or_a_key_says_so() -> None:
    assert unclear(rides()) == []
    timeless = rides(pickup_time=None)
    assert unclear(timeless) == ["time"]
    with pytest.raises(UserError) as caught:
        propose(timeless, source="rides.csv")
    assert str(caught.value) == (
        "no column of rides.csv looks like the time of an event\n  fix: say which field it is in"
    )
    loose = rides(driver_id=None, vehicle=None, city=None)
    assert unclear(loose) == ["key"]
    with pytest.raises(UserError) as caught:
        propose(loose, source="rides.csv")
    assert str(caught.value) == (
        "no column of rides.csv is the key that comes again from row to row\n"
        "  fix: say which field identifies a person or thing that comes again"
    )
    assert task_of(propose(loose, Answers(key="passengers"))).event.key == "passengers"


def test_an_answer_that_is_no_column_suggests_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        propose(rides(), Answers(key="drivr_id"), "rides.csv")
    assert str(caught.value) == (
        'rides.csv has no column drivr_id\n  fix: did you mean "driver_id"? '
        "its columns are ride_id, pickup_time, driver_id, vehicle, fare, passengers, city, complained"
    )


def test_an_answered_label_must_be_zeros_and_ones() -> None:
    with pytest.raises(UserError) as caught:
        propose(rides(), Answers(label="city"), "rides.csv")
    assert str(caught.value) == (
        "column city of rides.csv is no label\n"
        "  fix: a binary task learns from 0 and 1, or from true and false"
    )


def write_jsonl(path: Path, table: pa.Table) -> None:
    rows = [json.dumps(row, default=str) for row in table.to_pylist()]
    path.write_text("\n".join([rows[0], "{broken", *rows[1:]]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_the_three_kinds_of_files_give_the_same_task(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rides.{ending}"
    table = rides()
    writers: dict[str, Any] = {"parquet": pa.parquet.write_table, "csv": pa.csv.write_csv}
    if ending == "jsonl":
        write_jsonl(path, table)
    else:
        writers[ending](table, path)
    assert read_sample(path, 50).num_rows == 50

    def ask(question: str, default: str) -> str:
        raise AssertionError(f"nothing is unclear, and still it asks: {question}")

    assert task_of(propose_task(path, ask)).schema_hash == task_of(propose(table)).schema_hash


def test_only_what_is_unclear_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "rides.csv"
    pa.csv.write_csv(rides(pickup_time=None, at_hour=[f"{i % 24:02d}" for i in range(N)]), path)
    asked = []

    def ask(question: str, default: str) -> str:
        asked.append(question)
        return "at_hour"

    assert task_of(propose_task(path, ask)).event.time == "at_hour"
    assert asked == ["Field with the event's time"]


def test_without_a_sample_every_question_has_an_answer_to_start_from(tmp_path: Path) -> None:
    asked = []

    def ask(question: str, default: str) -> str:
        asked.append(question)
        return "amount, fee" if question.startswith("Fields with numbers") else default

    file = tmp_path / "my.toml"
    file.write_text(propose_task(None, ask), encoding="utf-8")
    task = load_task(file)
    assert len(asked) == 11
    assert (task.name, task.event.key, task.number_fields) == ("my-stream", "user_id", ("amount", "fee"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "rides.xlsx",
            b"x",
            "rides.xlsx does not say what it is\n  fix: rename it so that it ends in one of .parquet",
        ),
        ("rides.parquet", b"no parquet", "rides.parquet cannot be read as Parquet: Parquet "),
        (
            "rides.csv",
            b"",
            "rides.csv cannot be read as CSV: Empty CSV file\n  fix: check the file, or its ending",
        ),
        ("rides.jsonl", b"", "rides.jsonl has no rows\n  fix: give a sample with at least one event"),
        ("rides.csv", b"a,b\n", "rides.csv has no rows\n"),
        ("rides.csv", b"a,a\n1,2\n", "rides.csv has two columns of one name\n  fix: rename one of them"),
    ],
)
def test_a_file_that_is_no_sample(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        propose_task(path, lambda question, default: default)
    assert str(caught.value).startswith(expected)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        propose_task(tmp_path / "no.csv", lambda question, default: default)


def test_the_shared_transactions_keep_the_leak_out(data_dir: Path) -> None:
    text = propose_task(data_dir / "transactions-2018-04_07.parquet", lambda question, default: default)
    task = task_of(text)
    assert "# left out: TX_FRAUD_SCENARIO (it tells the label)" in text
    assert (task.event.id, task.event.key, task.label.field) == ("TRANSACTION_ID", "CUSTOMER_ID", "TX_FRAUD")
    assert [entity.name for entity in task.entities] == ["customer", "terminal"]
    assert task.number_fields == ("TX_AMOUNT",)
    assert task.metric == "average_precision"


KNOWN = [
    "id",
    "user_id",
    "event_id",
    "label",
    "time",
    "ts",
    "amount",
    "hour_sin",
    "y",
    "user_count_24h",
    "a.b",
]
NAMES = st.sampled_from([*KNOWN, "Ünïcode"]) | st.text(string.printable, max_size=12)
MAKERS: list[Any] = [
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 1),
    st.integers(1_700_000_000, 1_700_000_100),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from(["a", "b"]),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 1, 1)),  # noqa: DTZ001  a column of naive times is a case
    st.dates(),
    st.decimals(-1000, 1000, places=2).map(Decimal),
    st.binary(max_size=3),
    st.lists(st.integers(0, 9), max_size=2),
    st.just(None),
]


@st.composite
def tables(draw: st.DrawFn, /, rows: st.SearchStrategy[int], **known: Callable[[int], Any]) -> pa.Table:
    """Columns of any type and name, some of them with gaps, after the `known` ones."""
    count = draw(rows)
    columns = {name: [make(i) for i in range(count)] for name, make in known.items()}
    for name in draw(st.lists(NAMES.filter(lambda name: name not in known), max_size=6, unique=True)):
        values = draw(st.sampled_from(MAKERS))
        values = values | st.none() if draw(st.booleans()) else values
        columns[name] = draw(st.lists(values, min_size=count, max_size=count))
    return pa.table({name: pa.array(values) for name, values in columns.items()})


@given(
    tables(st.integers(0, 8)), st.sampled_from([Answers(), Answers(time="ts"), Answers(key="id", label="y")])
)
@settings(max_examples=150)
def test_a_sample_of_anything_is_proposed_or_refused(sample: pa.Table, answers: Answers) -> None:
    try:
        text = propose(sample, answers)
    except UserError as error:
        assert error.fix  # noqa: PT017  both ends are right; nothing else may be raised
    else:
        assert task_of(text).numbers
    unclear(sample)


@given(
    tables(
        st.integers(4, 40),
        at=lambda i: START + timedelta(minutes=i),
        account_id=lambda i: f"a{i % 2}",
    )
)
@settings(max_examples=150)
def test_a_time_and_a_key_are_enough_whatever_else_there_is(sample: pa.Table) -> None:
    assert unclear(sample) == []
    task = task_of(propose(sample))
    assert task.event.time in ("at", "ts", "time")
    assert task.numbers

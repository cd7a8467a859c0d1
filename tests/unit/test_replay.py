import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from streams import replay_readers
from streams.events import time_parser
from streams.feed import Item
from streams.replay import Replay
from streams.replay_columns import time_writer
from streams.task import Task, load_task

TASK = """
[task]
name = "parcels"
[event]
id = "parcel"
key = "sender"
time = "at"
time_format = "{time_format}"
[event.fields]
weight = {{ type = "number" }}
depot = {{ type = "category", required = false }}
[entities]
sender = "sender"
[label]
field = "lost"
missing = 0
{label}
[[features]]
entity = "sender"
windows = ["1d"]
aggregates = ["count"]
"""
COLUMNS = ["parcel", "sender", "at", "weight", "depot", "lost"]
MINUTE = 60_000


def parcels(
    folder: Path, *, time_format: str = "epoch_ms", label: str = 'delay = "1m"\nwindow = "1h"'
) -> Task:
    path = folder / "parcels.toml"
    path.write_text(TASK.format(time_format=time_format, label=label))
    return load_task(path)


def rows(n: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "parcel": f"p{i}",
            "sender": i % 2,
            "at": i * MINUTE,
            "weight": i + 0.5,
            "depot": "NA",
            "lost": i % 2,
            "x": 1,
        }
        for i in range(n)
    ]


def write(folder: Path, kind: str, rows: list[dict[str, Any]], name: str = "file") -> Path:
    path = folder / f"{name}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        names = list(rows[0])
        lines = [",".join("" if row.get(n) is None else str(row[n]) for n in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def record(item: Item) -> dict[str, Any]:
    assert isinstance(item.value, dict)
    return item.value


def events(items: list[Item]) -> list[dict[str, Any]]:
    return [item.value for item in items if item.kind == "event" and isinstance(item.value, dict)]


def labels(items: list[Item]) -> list[dict[str, Any]]:
    return [item.value for item in items if item.kind == "label" and isinstance(item.value, dict)]


@pytest.fixture(params=["parquet", "csv", "jsonl"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_come_in_time_order_with_labels_when_they_are_known(tmp_path: Path, kind: str) -> None:
    replay = Replay(parcels(tmp_path), write(tmp_path, kind, rows()))
    items = list(replay.items())
    assert [(i.kind[0], i.time_ms // MINUTE) for i in items] == [
        *[("e", 0), ("e", 1), ("l", 1), ("e", 2), ("l", 2), ("e", 3), ("l", 3), ("e", 4), ("l", 4), ("l", 5)]
    ]
    assert replay.total == len(items) == 10
    assert replay.events == 5
    assert (replay.start_ms, replay.span_ms) == (0, 4 * MINUTE)
    first = events(items)[0]
    assert first | {"sender": int(first["sender"])} == {
        "parcel": "p0", "sender": 0, "at": 0, "weight": 0.5, "depot": "NA"
    }  # fmt: skip
    assert labels(items)[1] == {"parcel": "p1", "lost": 1}
    assert [i.key for i in items if i.kind == "event"] == ["0", "1", "0", "1", "0"]
    assert [i.key for i in items if i.kind == "label"] == ["0", "1", "0", "1", "0"]
    assert replay.notes == []
    assert list(replay.items()) == items


def test_the_label_and_undeclared_columns_never_travel_with_the_event(tmp_path: Path, kind: str) -> None:
    for value in events(list(Replay(parcels(tmp_path), write(tmp_path, kind, rows())).items())):
        assert set(value) == {"parcel", "sender", "at", "weight", "depot"}


def test_a_file_that_is_not_in_time_order_is_sorted_and_equal_times_keep_their_order(
    tmp_path: Path, kind: str
) -> None:
    shuffled = [
        dict(row, at=row["at"] // MINUTE // 4 * MINUTE, depot=f"d{i}") for i, row in enumerate(rows(40))
    ]
    order = np.random.default_rng(0).permutation(40)
    replay = Replay(parcels(tmp_path), write(tmp_path, kind, [shuffled[i] for i in order]))
    items = list(replay.items())
    assert [i.time_ms for i in items] == sorted(i.time_ms for i in items)
    wanted = sorted((shuffled[i] for i in order), key=lambda row: int(row["at"]))
    assert [e["parcel"] for e in events(items)] == [row["parcel"] for row in wanted]
    assert {e["parcel"]: e["depot"] for e in events(items)} == {r["parcel"]: r["depot"] for r in shuffled}
    assert {e["parcel"]: e["lost"] for e in labels(items)} == {r["parcel"]: r["lost"] for r in shuffled}
    assert any("not in time order" in note for note in replay.notes)


def test_more_rows_than_a_batch(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_readers, "_BATCH", 7)
    backwards = rows(50)[::-1]
    for given in (rows(50), backwards):
        items = list(Replay(parcels(tmp_path), write(tmp_path, kind, given)).items())
        assert [e["parcel"] for e in events(items)] == [f"p{i}" for i in range(50)]
        assert [e["parcel"] for e in labels(items)] == [f"p{i}" for i in range(50)]


def test_a_label_is_sent_at_its_own_time_where_the_file_has_it(tmp_path: Path, kind: str) -> None:
    task = parcels(tmp_path, label='time = "found"\ndelay = "1m"\nwindow = "1h"')
    late = [dict(row, found=(20 - i) * MINUTE if i != 3 else None) for i, row in enumerate(rows())]
    items = list(Replay(task, write(tmp_path, kind, late)).items())
    known = {record(i)["parcel"]: i.time_ms // MINUTE for i in items if i.kind == "label"}
    assert known == {"p0": 20, "p1": 19, "p2": 18, "p3": 4, "p4": 16}  # p3: its event's time and the delay
    assert all(record(item)["found"] == item.time_ms for item in items if item.kind == "label")
    assert not any("found" in value for value in events(items))
    assert [i.time_ms for i in items] == sorted(i.time_ms for i in items)


def test_a_row_without_a_label_has_none(tmp_path: Path, kind: str) -> None:
    given = [dict(row, lost=None if i in (0, 3) else row["lost"]) for i, row in enumerate(rows())]
    replay = Replay(parcels(tmp_path), write(tmp_path, kind, given))
    items = list(replay.items())
    assert [value["parcel"] for value in labels(items)] == ["p1", "p2", "p4"]
    assert replay.total == len(items) == 8


def test_missing_values_are_left_out(tmp_path: Path, kind: str) -> None:
    given = rows(3)
    given[1]["depot"] = None
    given[2]["weight"] = None if kind == "jsonl" else float("nan")
    items = list(Replay(parcels(tmp_path), write(tmp_path, kind, given)).items())
    assert ["depot" in value for value in events(items)] == [True, False, True]
    assert ["weight" in value for value in events(items)] == [True, True, False]


def test_columns_with_other_names_are_mapped(tmp_path: Path, kind: str) -> None:
    other = [
        {"no": r["parcel"], "t": r["at"], "gone": r["lost"], "who": r["sender"], "weight": 1.0}
        for r in rows()
    ]
    mapping = {"parcel": "no", "at": "t", "lost": "gone", "sender": "who", "depot": "who"}
    replay = Replay(parcels(tmp_path), write(tmp_path, kind, other), mapping)
    items = list(replay.items())
    assert set(events(items)[0]) == {"parcel", "at", "sender", "depot", "weight"}
    assert events(items)[1]["depot"] == events(items)[1]["sender"]
    assert labels(items)[1] == {"parcel": "p1", "lost": 1}
    assert replay.notes == []
    assert replay.identity != Replay(parcels(tmp_path), write(tmp_path, kind, other), {**mapping, "at": "t", "depot": "no"}).identity  # fmt: skip  # noqa: E501


def test_without_ids_rows_are_numbered_in_the_file_s_order_and_a_note_says_so(
    tmp_path: Path, kind: str
) -> None:
    bare = [{k: v for k, v in row.items() if k not in ("parcel", "depot")} for row in rows()][::-1]
    replay = Replay(parcels(tmp_path), write(tmp_path, kind, bare, "march"))
    items = list(replay.items())
    assert [value["parcel"] for value in events(items)] == [f"march-{i}" for i in (4, 3, 2, 1, 0)]
    assert [value["parcel"] for value in labels(items)] == [f"march-{i}" for i in (4, 3, 2, 1, 0)]
    assert any("march-0" in note for note in replay.notes)
    assert any("no column depot" in note for note in replay.notes)


def test_a_missing_column_is_named_with_those_that_there_are(tmp_path: Path, kind: str) -> None:
    short = [{"parcel": "p", "at": 1, "depot": "d"}]
    with pytest.raises(UserError) as error:
        Replay(parcels(tmp_path), write(tmp_path, kind, short))
    assert error.value.message == (
        f"file.{kind} has no columns weight, sender, lost, which task parcels needs; "
        "its columns are parcel, at, depot"
    )
    assert "--map sender=COLUMN" in error.value.fix


def test_events_can_go_without_labels(tmp_path: Path, kind: str) -> None:
    unlabelled = [{k: v for k, v in row.items() if k != "lost"} for row in rows()]
    path = write(tmp_path, kind, unlabelled)
    with pytest.raises(UserError, match=r"no column lost[\s\S]*--map lost=COLUMN"):
        Replay(parcels(tmp_path), path)
    replay = Replay(parcels(tmp_path), path, labels=False)
    assert [item.kind for item in replay.items()] == ["event"] * 5
    assert replay.total == 5


def test_a_mapping_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    task, path = parcels(tmp_path), write(tmp_path, "csv", rows())
    with pytest.raises(UserError, match=r"no field wait[\s\S]*parcel, at, weight"):
        Replay(task, path, {"wait": "weight"})
    with pytest.raises(UserError, match="no column nowhere"):
        Replay(task, path, {"depot": "nowhere"})
    with pytest.raises(UserError, match="is the label"):
        Replay(task, path, {"depot": "lost"})


def test_broken_lines_go_as_they_are_after_the_row_before_them(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    good = [json.dumps(row).encode() for row in rows(3)]
    no_time = b'{"parcel":"p9","sender":0,"at":"soon","weight":1,"lost":1}'
    lines = [good[0], b'{"parcel": "p1", "at"', b"", b"[1,2]", no_time, good[2], b"\xff\xfe", good[1]]
    path.write_bytes(b"\n".join(lines))
    replay = Replay(parcels(tmp_path), path)
    items = [item for item in replay.items() if item.kind == "event"]
    assert [item.value if isinstance(item.value, bytes) else item.value["parcel"] for item in items] == [
        *["p0", b'{"parcel": "p1", "at"', b"[1,2]", "p9", "p1", "p2", b"\xff\xfe"]
    ]
    assert [item.time_ms // MINUTE for item in items] == [0, 0, 0, 0, 1, 2, 2]
    assert [item.key for item in items if isinstance(item.value, bytes)] == ["", "", ""]
    assert [value["parcel"] for value in labels(list(replay.items()))] == ["p0", "p1", "p2"]
    assert replay.total == len(list(replay.items()))


def test_broken_cells_and_rows_of_a_csv_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    lines = [
        "a,x,0,1.5,d,0",
        "b,x,60000,heavy,d,1",
        "c,x,120000",
        'd,x,180000,2,"two\nlines",0',
        "e,x,later,3,d,1",
    ]
    path.write_text("\n".join([",".join(COLUMNS), *lines]))
    replay = Replay(parcels(tmp_path), path)
    items = list(replay.items())
    assert [(v["parcel"], v["weight"], v["depot"]) for v in events(items)] == [
        ("a", 1.5, "d"),
        ("b", "heavy", "d"),
        ("d", 2.0, "two\nlines"),
        ("e", 3.0, "d"),
    ]
    assert events(items)[3]["at"] == "later"  # serve will refuse it; it keeps the place of the row before
    assert [v["parcel"] for v in labels(items)] == ["a", "b", "d"]
    assert replay.notes == ["1 rows of file.csv have too few or too many cells: left out"]


def test_a_field_may_appear_late_in_a_jsonl_file(tmp_path: Path) -> None:
    given = rows(9000)
    for row in given[:8999]:
        del row["depot"]
    items = list(Replay(parcels(tmp_path), write(tmp_path, "jsonl", given)).items())
    assert [value["parcel"] for value in events(items) if "depot" in value] == ["p8999"]


FORMATS = ["epoch_ms", "epoch_s", "iso8601", "%d/%m/%Y %H:%M:%S.%f %z"]


@pytest.mark.parametrize("time_format", FORMATS)
def test_what_is_written_as_a_time_is_read_as_the_same_time(time_format: str) -> None:
    write, read = time_writer(time_format), time_parser(time_format)
    for ms in (0, 1, 999, 1_704_067_200_123, 4_102_444_800_000):
        assert read(write(ms)) == ms


@pytest.mark.parametrize("time_format", FORMATS)
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_arrow_times_are_written_in_the_task_s_format(
    tmp_path: Path, time_format: str, zone: str | None
) -> None:
    table = pa.Table.from_pylist(rows(3))
    moments = pa.array([1_704_067_200_123_456_789, None, 1_704_067_200_123_999_999]).cast(
        pa.timestamp("ns", zone)
    )
    path = tmp_path / "file.parquet"
    pq.write_table(table.set_column(2, "at", moments), path)
    items = list(Replay(parcels(tmp_path, time_format=time_format), path).items())
    found = [value.get("at") for value in events(items)]
    read = time_parser(time_format)
    assert [read(found[0]), found[1], read(found[2])] == [1_704_067_200_123, None, 1_704_067_200_123]
    assert [item.time_ms for item in items if item.kind == "event"] == [1_704_067_200_123] * 3
    assert len(labels(items)) == 2


def test_odd_arrow_types_become_json(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    columns = {
        "parcel": pa.array([1.0, 2.0]),
        "sender": pa.array(["a", "b"]).dictionary_encode(),
        "at": pa.array([0, 1]),
        "weight": pa.array([1, 2]).cast(pa.decimal128(24, 3)),
        "depot": pa.array([18_000, 18_001]).cast(pa.int32()).cast(pa.date32()),
        "lost": pa.array([True, False]),
    }
    pq.write_table(pa.table(columns), path)
    items = list(Replay(parcels(tmp_path), path).items())
    assert events(items)[0] == {"parcel": 1, "sender": "a", "at": 0, "weight": 1.0, "depot": "2019-04-14"}
    assert labels(items) == [{"parcel": 1, "lost": True}, {"parcel": 2, "lost": False}]
    json.dumps([item.value for item in items])


def test_a_file_that_is_too_large_to_sort_says_so(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_readers, "SORT_LIMIT_BYTES", 10)
    path = write(tmp_path, kind, rows()[::-1])
    replay = Replay(parcels(tmp_path), path)
    if kind == "jsonl":  # only the places of its lines are held
        assert len(list(replay.items())) == 10
    else:
        with pytest.raises(UserError, match="sort it by its time column"):
            list(replay.items())
    assert len(list(Replay(parcels(tmp_path), write(tmp_path, kind, rows(), "sorted")).items())) == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "there is no file"),
        ("data.txt", b"x", "does not say what it is"),
        ("data.csv", b"", "cannot be read"),
        ("data.csv", (",".join(COLUMNS) + "\n").encode(), "has no rows"),
        ("data.csv", b"\xff\xfe\x00bad\n1,2\n", "data.csv"),
        ("data.parquet", b"not parquet", "cannot be read"),
        ("data.jsonl", b"", "has no columns"),
        ("data.jsonl", b"nonsense\n", "none that can be read"),
    ],
)
def test_files_that_cannot_be_replayed(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        Replay(parcels(tmp_path), path)
    assert error.value.fix

"""Rows to bytes and back, bit for bit; damaged bytes and rows of another schema are refused."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.late import real_share
from streams import wire
from streams.rows import LABELLED_ARRAYS, MOST_BYTES, ROW_ARRAYS, Feedback, Labelled, Labels, Rows, cuts
from streams.task import Task, load_task
from streams.wire import Damaged
from tests.stream_records import task

TASK = task()
BARE = load_task(Path(__file__).parent / "rides_smallest.toml")  # no number and no category at all
INTS = st.integers(-(2**63), 2**63 - 1)


def rows_of(made: Task, n: int, seed: int) -> Rows:
    """`n` rows of any content."""
    random = np.random.default_rng(seed)
    empty = Rows.empty(made)
    arrays: dict[str, Any] = {}
    for name in ROW_ARRAYS:
        like = getattr(empty, name)
        raw = random.integers(0, 256, (n, *like.shape[1:], like.dtype.itemsize), np.uint8)
        arrays[name] = raw.view(like.dtype)[..., 0] if like.dtype != np.bool_ else raw[..., 0] % 2 == 1
    ids = ["é" * int(i) for i in random.integers(0, 5, n)]
    return Rows(ids, **arrays, schema=made.rows_hash)


def same(a: Rows, b: Rows) -> bool:
    """Equal to the last bit, NaN included."""
    arrays = [(getattr(a, name), getattr(b, name)) for name in ROW_ARRAYS]
    return (a.ids, a.schema) == (b.ids, b.schema) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in arrays
    )


def labelled_of(made: Task, n: int, seed: int = 0) -> Labelled:
    random = np.random.default_rng(seed)
    score = random.random(n).astype(np.float32)
    versions = [f"L1.{i}" for i in range(n)]
    known = random.integers(0, 2**50, n)
    rows = rows_of(made, n, seed)
    return Labelled(rows, score, versions, np.round(score), known, score > 0.5, score + 0.5, score > 0.7)


def labels_of(ids: list[str], known: np.ndarray) -> Labels:
    place = np.arange(len(ids)) + 5
    return Labels(ids, np.arange(len(ids), dtype=np.float32), known, place.astype(np.int32), place)


@settings(max_examples=60)
@given(st.sampled_from([TASK, BARE]), st.integers(0, 9), st.integers(0, 2**32))
def test_rows_come_back_bit_for_bit(made: Task, n: int, seed: int) -> None:
    rows = rows_of(made, n, seed)
    assert same(wire.decode_rows(wire.encode_rows(rows), made.rows_hash), rows)
    served = np.arange(n, dtype=np.float32)
    again, scores, versions = wire.decode_examples(wire.encode_examples(rows, served, "L2.7"), made.rows_hash)
    assert same(again, rows)
    assert (scores.tolist(), versions) == (served.tolist(), ["L2.7"] * n)
    labelled = labelled_of(made, n, seed)
    found = wire.decode_labelled(wire.encode_labelled(labelled))
    assert same(found.rows, labelled.rows)
    assert found.version == labelled.version
    for name in LABELLED_ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(labelled, name))


@given(st.lists(st.tuples(st.text(max_size=5), INTS)))
def test_labels_and_feedback_come_back(pairs: list[tuple[str, int]]) -> None:
    known = np.array([k for _, k in pairs], np.int64)
    labels = labels_of([i for i, _ in pairs], known)
    found = wire.decode_labels(wire.encode_labels(labels))
    assert (found.ids, found.known_ms.tolist()) == (labels.ids, known.tolist())
    assert (found.partition.tolist(), found.offset.tolist()) == (
        labels.partition.tolist(),
        labels.offset.tolist(),
    )
    feedback = wire.decode_feedback(wire.encode_feedback(Feedback(known, known, known / 2, known > 0)))
    assert (feedback.keys.tolist(), feedback.label.tolist()) == (known.tolist(), (known / 2).tolist())
    assert feedback.back.tolist() == (known > 0).tolist()


def test_a_later_stage_may_write_into_the_numbers_it_decoded() -> None:
    rows = wire.decode_rows(wire.encode_rows(rows_of(TASK, 3, 0)))
    rows.numbers[:, 0] = 1.0
    assert rows.numbers[:, 0].tolist() == [1.0] * 3


def test_what_is_no_record_of_ours_is_refused() -> None:
    whole = wire.encode_rows(rows_of(TASK, 4, 1))
    labels = wire.encode_labels(labels_of(["a"], np.zeros(1, np.int64)))
    for data in (None, b"", b"{}", b"\xff" * 100, whole[: len(whole) // 2], whole[:9], labels):
        with pytest.raises(Damaged):
            wire.decode_rows(data)
    for decode in (wire.decode_labels, wire.decode_feedback, wire.decode_examples, wire.decode_labelled):
        with pytest.raises(Damaged):
            decode(whole)


def test_a_column_with_a_gap_is_refused() -> None:
    read = pa.ipc.open_stream(wire.encode_labels(labels_of(["a", "b"], np.arange(2)))).read_all()
    with pa.BufferOutputStream() as out:
        gap = read.set_column(1, "label", pa.array([1.0, None], pa.float32()))
        with pa.ipc.new_stream(out, gap.schema) as writer:
            writer.write_table(gap)
        data = out.getvalue().to_pybytes()
    with pytest.raises(Damaged, match="label has gaps"):
        wire.decode_labels(data)


def test_rows_of_another_task_file_are_refused() -> None:
    data = wire.encode_rows(rows_of(BARE, 2, 0))
    assert len(wire.decode_rows(data)) == 2
    with pytest.raises(Damaged, match="another version of the task file"):
        wire.decode_rows(data, TASK.rows_hash)
    ((_, at_hand),) = wire.split_rows(rows_of(BARE, 2, 0), np.zeros(2, np.int64))
    with pytest.raises(Damaged, match="another version of the task file"):
        wire.decode_rows(at_hand, TASK.rows_hash)
    unused = task(
        tip='{ type = "number", required = false, model = false }\nsize = { type = "number", model = false }'
    )
    assert unused.schema_hash == TASK.schema_hash  # the model is the same,
    assert unused.rows_hash != TASK.rows_hash  # the columns on the way are not


@settings(max_examples=60)
@given(st.sampled_from([TASK, BARE]), st.integers(0, 30), st.integers(0, 2**32), st.booleans())
def test_a_split_gives_each_target_its_rows_in_order(made: Task, n: int, seed: int, small: bool) -> None:
    rows, served = rows_of(made, n, seed), np.arange(n, dtype=np.float32)
    targets = np.random.default_rng(seed).integers(0, 4, n)
    versions = [f"L1.{i % 3}" for i in range(n)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "MOST_BYTES", 300 if small else MOST_BYTES)
        passed = list(wire.split_rows(rows, targets))
        examples = list(wire.split_examples(rows, served, versions, targets))
    if n and not small:
        assert len(passed) == len(examples) == len(set(targets.tolist()))
    for target in range(4):
        own = np.flatnonzero(targets == target)
        found = [wire.decode_rows(bytes(data), made.rows_hash) for to, data in passed if to == target]
        at_hand = [wire.decode_rows(data, made.rows_hash) for to, data in passed if to == target]
        assert all(same(ours, read) for ours, read in zip(at_hand, found, strict=True))
        assert same(Rows.concat([rows.take(own[:0]), *found]), rows.take(own))
        told = [wire.decode_examples(data, made.rows_hash) for to, data in examples if to == target]
        assert same(Rows.concat([rows.take(own[:0]), *(part for part, _, _ in told)]), rows.take(own))
        assert [score for _, scores, _ in told for score in scores] == served[own].tolist()
        assert [name for _, _, names in told for name in names] == [versions[i] for i in own]


@settings(max_examples=300)
@given(st.data())
def test_a_flipped_byte_never_does_worse_than_damaged(data: st.DataObject) -> None:
    whole = bytearray(wire.encode_labelled(labelled_of(TASK, 3)))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Damaged):  # and nothing else
        found = wire.decode_labelled(bytes(whole))
        assert len(found.version) == len(found.rows) == len(found.label)


def test_cuts_keep_every_row_in_order_and_below_the_limit() -> None:
    for batch in (rows_of(TASK, 500, 3), labelled_of(TASK, 500)):
        parts = cuts(batch, 20_000)
        assert np.concatenate(parts).tolist() == list(range(500))
        assert len(parts) > 2
    rows = rows_of(TASK, 500, 3)
    sizes = [len(wire.encode_rows(rows.take(cut))) for cut in cuts(rows, 20_000)]
    assert max(sizes) < 25_000
    assert same(Rows.concat([rows.take(cut) for cut in cuts(rows, 20_000)]), rows)
    assert cuts(Rows.empty(TASK)) == []
    assert len(cuts(rows)) == 1
    feedback = Feedback(np.arange(9), np.arange(9), np.ones(9), np.zeros(9, np.bool_))
    assert [len(feedback.take(cut)) for cut in cuts(feedback, 100)] == [3, 3, 3]
    labels = labels_of(["id"] * 9, np.arange(9))
    assert [labels.take(cut).known_ms.tolist() for cut in cuts(labels, 140)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8],
    ]


def test_take_and_concat() -> None:
    rows = rows_of(TASK, 6, 5)
    mask = np.array([True, False] * 3)
    assert same(rows.take(mask), rows.take(np.array([0, 2, 4])))
    assert rows.with_late(~rows.late).late.tolist() == (~rows.late).tolist()
    whole = labelled_of(TASK, 5)
    again = Labelled.concat([whole.take(np.arange(2)), whole.take(np.arange(2, 5))])
    assert same(again.rows, whole.rows)
    assert again.version == whole.version
    batch = replace(whole, version=["L1.4", "L12.3", "L1.5", "", "L2.0"]).batch()
    assert batch.event_ids == whole.rows.ids
    assert batch.lineage.tolist() == [1, 12, 1, 0, 2]
    for name in ("label", "corrects"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(whole, name))
    share = real_share(whole.label, whole.served, whole.late_share)
    np.testing.assert_array_equal(batch.weight, share * whole.rows.weight)


@given(st.lists(INTS, min_size=1, max_size=20), st.integers(1, 16))
def test_every_key_has_a_partition(keys: list[int], partitions: int) -> None:
    found = wire.partition_of(np.array(keys, np.int64), partitions)
    assert found.tolist() == [key % 2**64 % partitions for key in keys]
    assert 0 <= wire.partition_of_id(str(keys[0]), partitions) < partitions

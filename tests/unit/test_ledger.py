"""The training ledger: what was written is read, half-written states are not, and changes are noticed."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.blobs import Blobs
from infra.errors import UserError
from learners.checkpoint import DictStore, Store
from learners.entries import Entry, Line, OneStep, Run, Settings, Steps, Version, Void, in_order
from learners.ledger import NO_CHAIN, BrokenLedger, Ledger, read_lines, read_segment

PREFIX = "learner/t/ledger"


def steps(first: int, count: int = 1) -> Steps:
    runs = tuple((Run(0, n, 0, n + 1, 0),) for n in range(first, first + count))
    return Steps(first, runs, (32,) * count, (5, 9), 7, "abc")


def version(step: int, name: str = "L1.1") -> Version:
    return Version(step, name, False, None, "", "c", "s", 0, 32 * step, 9, {0: (step, 0)})


def fill(ledger: Ledger, count: int) -> None:
    for _ in range(count):
        ledger.append(steps(ledger.n + 1), at_ms=ledger.n)


def numbers(lines: Iterator[Line]) -> list[int]:
    return [line.n for line in lines]


@pytest.fixture(params=["dict", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return DictStore() if request.param == "dict" else Blobs(f"file://{tmp_path}/blobs")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "local" / "ledger.jsonl"


def reopened(path: Path, store: Store) -> tuple[int, str]:
    ledger = Ledger(path, store, PREFIX)
    ledger.close()
    return ledger.n, ledger.chain


def test_what_was_written_is_read(path, store):
    ledger = Ledger(path, store, PREFIX)
    entries: list[Entry] = [
        Settings(0, "abc", {"seed": 7}, True, "the first", {0: (0, 0)}),
        steps(1, 3),
        version(2),
        Void(3, "x"),
    ]
    for at, entry in enumerate(entries):
        ledger.append(entry, at)
    found = list(read_lines(path, store, PREFIX))
    assert [line.entry for line in found] == entries
    assert [(line.n, line.at_ms) for line in found] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert found[-1].chain == ledger.chain
    assert list(ledger.lines(2, found[1].chain)) == found[2:]
    assert list(ledger.lines(4, ledger.chain)) == []
    ledger.close()
    assert reopened(path, store) == (4, found[-1].chain)


def test_segments_are_sealed_and_read_in_order(path, store):
    ledger = Ledger(path, store, PREFIX, segment_bytes=600)
    for _ in range(7):
        fill(ledger, 2)
        ledger.seal()
    fill(ledger, 1)
    assert len(store.list(f"{PREFIX}/")) > 2
    assert numbers(read_lines(path, store, PREFIX)) == list(range(1, 16))
    whole = list(read_lines(path, store, PREFIX))
    for after in range(16):
        chain = whole[after - 1].chain if after else NO_CHAIN
        assert numbers(ledger.lines(after, chain)) == list(range(after + 1, 16))
        with pytest.raises(BrokenLedger):
            list(ledger.lines(after, "another"))
    with pytest.raises(BrokenLedger, match="not there"):
        list(read_lines(path, store, PREFIX, 16))


def test_a_lost_disk_costs_what_was_not_sealed(path, store):
    ledger = Ledger(path, store, PREFIX)
    fill(ledger, 3)
    ledger.seal()
    sealed = ledger.n, ledger.chain
    fill(ledger, 2)
    ledger.close()
    path.unlink()
    assert numbers(read_lines(path, store, PREFIX)) == [1, 2, 3]
    assert reopened(path, store) == sealed


def test_a_torn_last_line_at_every_byte_is_as_if_it_had_not_begun(path, store):
    ledger = Ledger(path, store, PREFIX)
    fill(ledger, 2)
    before, size = (ledger.n, ledger.chain), path.stat().st_size
    fill(ledger, 1)
    ledger.close()
    data = path.read_bytes()
    for torn in [
        *(data[:end] for end in range(size, len(data))),
        data[:-9] + b"\0" * 9,
        data[:size] + b"\0" * 50,
    ]:
        path.write_bytes(torn)
        assert numbers(read_lines(path, store, PREFIX)) == [1, 2]
        assert reopened(path, store) == before
        assert path.read_bytes() == data[:size]


def test_a_file_that_has_no_whole_header_is_begun_again(path, store):
    first = Ledger(path, store, PREFIX)
    fill(first, 3)
    first.seal()
    end = first.n, first.chain
    first.close()
    header = path.read_bytes().partition(b"\n")[0]
    for cut in range(len(header) + 1):
        path.write_bytes(header[:cut])
        assert reopened(path, store) == end


class Dies(Exception):
    pass


class DyingStore(DictStore):
    """Ends the process, so to say, before its n-th change."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def put(self, name: str, data: bytes, /) -> None:
        if self.left == 0:
            raise Dies
        self.left -= 1
        super().put(name, data)


def test_a_seal_that_dies_at_any_point_loses_no_entry(tmp_path):
    for deaths in itertools.count():
        path, store = tmp_path / f"{deaths}.jsonl", DyingStore(deaths)
        ledger = Ledger(path, store, PREFIX, segment_bytes=300)
        try:
            for _ in range(6):
                fill(ledger, 2)
                ledger.seal()
        except Dies:
            ledger.close()
            assert numbers(read_lines(path, store, PREFIX)) == list(range(1, ledger.n + 1))
            assert reopened(path, store) == (ledger.n, ledger.chain)
        else:
            ledger.close()
            break
    assert deaths == 6


def test_a_changed_line_is_noticed_and_set_aside(path, store):
    ledger = Ledger(path, store, PREFIX)
    fill(ledger, 2)
    ledger.seal()
    end = ledger.n, ledger.chain
    fill(ledger, 2)
    ledger.close()
    changed = path.read_bytes().replace(b'"at_ms":2', b'"at_ms":3')
    path.write_bytes(changed)
    with pytest.raises(BrokenLedger, match="entry 3 is not what was written"):
        numbers(read_lines(path, store, PREFIX))
    assert reopened(path, store) == end
    assert [aside.read_bytes() for aside in path.parent.glob("ledger.jsonl.*")] == [changed]


@pytest.mark.parametrize("change", ["changed", "cut", "left out"])
def test_a_changed_segment_of_the_store_is_noticed(path, change):
    store = DictStore()
    ledger = Ledger(path, store, PREFIX, segment_bytes=10)
    for _ in range(3):
        fill(ledger, 2)
        ledger.seal()
    name = f"{PREFIX}/{3:012d}.jsonl"
    data = store.get(name)
    store.delete(name)
    if change != "left out":
        store.put(name, data.replace(b'"row', b'"wor') if change == "changed" else data[:-1])
    with pytest.raises(BrokenLedger):
        numbers(read_lines(path, store, PREFIX))
    assert numbers(ledger.lines(ledger.n, ledger.chain)) == []
    ledger.close()


def test_a_line_of_another_place_is_not_taken(path, store):
    ledger = Ledger(path, store, PREFIX)
    fill(ledger, 3)
    ledger.close()
    header, *lines = path.read_bytes().splitlines(keepends=True)
    with pytest.raises(BrokenLedger):
        read_segment(b"".join([header, lines[1], lines[0], lines[2]]), "x")
    without_last = read_segment(b"".join([header, lines[0], lines[2]]), "x")
    assert without_last is not None
    assert without_last.n == 1


def test_a_machine_that_was_away_does_not_bring_its_old_entries(tmp_path, store):
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    first = Ledger(here, store, PREFIX)
    fill(first, 2)
    first.seal()
    fill(first, 1)
    first.close()
    second = Ledger(there, store, PREFIX)
    second.append(version(2), 0)
    second.seal()
    end = second.n, second.chain
    second.close()
    assert reopened(here, store) == end
    assert [line.entry for line in read_lines(here, store, PREFIX)][2:] == [version(2)]


def test_a_checkpoint_that_the_ledger_does_not_know_is_gone_on_from(path, store):
    ledger = Ledger(path, store, PREFIX)
    fill(ledger, 2)
    with pytest.raises(BrokenLedger):
        list(ledger.lines(9, "f" * 32))
    ledger.restart(9, "f" * 32)
    fill(ledger, 1)
    ledger.seal()
    assert numbers(ledger.lines(9, "f" * 32)) == [10]
    end = ledger.n, ledger.chain
    ledger.close()
    assert reopened(path, store) == end
    with pytest.raises(BrokenLedger):
        numbers(read_lines(path, store, PREFIX, 0))


def test_what_no_checkpoint_needs_is_pruned(path, store):
    ledger = Ledger(path, store, PREFIX, segment_bytes=10)
    for _ in range(4):
        fill(ledger, 2)
        ledger.seal()
    ledger.prune(1)
    assert numbers(read_lines(path, store, PREFIX)) == list(range(1, 9))
    ledger.prune(5)
    assert numbers(read_lines(path, store, PREFIX)) == [5, 6, 7, 8]
    with pytest.raises(BrokenLedger, match="entry 1 is not there: it has 5 to 6"):
        numbers(read_lines(path, store, PREFIX, 0))
    ledger.prune(8)
    assert numbers(read_lines(path, store, PREFIX)) == []
    fill(ledger, 1)
    ledger.close()
    assert reopened(path, store)[0] == 9


def test_a_second_learner_is_refused(path, store):
    first = Ledger(path, store, PREFIX)
    with pytest.raises(UserError, match="another learner"):
        Ledger(path, store, PREFIX)
    first.close()
    Ledger(path, store, PREFIX).close()


def full(_: int) -> None:
    """What fdatasync does on a full disk."""
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_ledger_as_it_was(path, store, monkeypatch):
    ledger = Ledger(path, store, PREFIX)
    fill(ledger, 1)
    before = ledger.n, ledger.chain, path.read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            fill(ledger, 1)
    assert (ledger.n, ledger.chain, path.read_bytes()) == before
    fill(ledger, 1)
    assert numbers(read_lines(path, store, PREFIX)) == [1, 2]


def test_a_file_that_the_full_disk_did_not_let_begin_begins_with_the_next_entry(path, store, monkeypatch):
    ledger = Ledger(path, store, PREFIX, segment_bytes=10)
    fill(ledger, 2)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            ledger.seal()
    assert numbers(read_lines(path, store, PREFIX)) == [1, 2]
    fill(ledger, 2)
    assert numbers(read_lines(path, store, PREFIX)) == [1, 2, 3, 4]
    end = ledger.n, ledger.chain
    ledger.close()
    assert reopened(path, store) == end


def ordered(entries: list[Entry], done: int = 0) -> list[str]:
    lines = [Line(n, 0, entry) for n, entry in enumerate(entries, 1)]
    return [
        str(each.number) if isinstance(each, OneStep) else type(each).__name__[0]
        for each in in_order(lines, done)
    ]


def test_versions_stand_after_the_steps_that_they_learned():
    begin = Settings(0, "abc", {}, True, "", {})
    assert ordered([begin, steps(1, 4), version(2), version(4), steps(5, 1)]) == list("S12V34V5")
    assert ordered([version(2), steps(3, 2), steps(5, 1)], done=2) == list("V345")
    assert ordered([steps(1, 4)], done=2) == list("34")
    assert ordered([steps(1, 4), Void(2, "gone"), steps(3, 1)]) == list("123")
    assert ordered([steps(1, 2), Settings(2, "d", {}, False, "", {}), steps(3, 1)]) == list("12S3")

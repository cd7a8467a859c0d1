import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.blobs import Blobs
from learners.checkpoint import (
    MANIFEST,
    DictStore,
    Found,
    IncompleteCheckpoint,
    Store,
    load,
    load_newest,
    prune,
    save,
)
from learners.trainer import Trainer
from tests.learner_rows import CONFIG, SCHEMA, rows

FILES = {"a.safetensors": b"weights" * 100, "deep/b.json": b"{}", "empty": b""}
META = {"positions": {"0": 17}, "why": "test"}


@pytest.fixture(params=["dict", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return DictStore() if request.param == "dict" else Blobs(f"file://{tmp_path}/blobs")


class Dies(Exception):
    pass


class DyingStore(DictStore):
    """Ends the process, so to say, before its n-th change."""

    def __init__(self, blobs: dict[str, bytes], changes: int) -> None:
        super().__init__()
        self.blobs = dict(blobs)
        self.left = changes

    def _change(self) -> None:
        if self.left == 0:
            raise Dies
        self.left -= 1

    def put(self, name: str, data: bytes, /) -> None:
        self._change()
        super().put(name, data)

    def delete(self, name: str, /) -> None:
        self._change()
        super().delete(name)


def test_the_store_contract(store):
    assert store.list("") == []
    store.put("x/b", b"1")
    store.put("x/a", b"2")
    store.put("x/sub/c", b"")
    store.put("xy", b"3")
    assert store.list("x/") == ["x/a", "x/b", "x/sub/c"]
    assert store.list("x") == ["x/a", "x/b", "x/sub/c", "xy"]
    assert store.list("nothing/") == []
    store.put("x/a", b"other")
    assert store.get("x/a") == b"other"
    store.delete("x/a")
    store.delete("x/a")
    with pytest.raises(KeyError):
        store.get("x/a")


def test_what_was_saved_is_loaded(store):
    assert load_newest(store, "t/learner") == Found(None, ())
    for step in (9, 10, 1000):
        assert save(store, "t/learner", step, FILES | {"n": b"%d" % step}, META) == f"t/learner/{step:012d}"
    found = load_newest(store, "t/learner")
    assert found.checkpoint is not None
    assert found.checkpoint.step == 1000
    assert found.checkpoint.files == FILES | {"n": b"1000"}
    assert found.checkpoint.meta == META
    assert found.skipped == ()
    assert load_newest(store, "t/learner", at_most=999).checkpoint == load(store, "t/learner", 10)
    assert load_newest(store, "t/learner", at_most=8).checkpoint is None
    assert load_newest(store, "t/learn").checkpoint is None


def test_prefixes_do_not_see_each_other(store):
    save(store, "one", 1, FILES, {})
    save(store, "one-more", 2, FILES, {})
    save(store, "one/inner", 3, FILES, {})
    assert load_newest(store, "one").checkpoint == load(store, "one", 1)
    assert prune(store, "one", 1) == []
    assert load(store, "one-more", 2).step == 2
    assert load(store, "one/inner", 3).step == 3


def every_death(blobs: dict[str, bytes], act) -> Iterator[DyingStore]:
    """The store after `act` died before each of its changes in turn (not the one where it got through)."""
    for changes in itertools.count():
        store = DyingStore(blobs, changes)
        try:
            act(store)
        except Dies:
            store.left = 10**9
            yield store
        else:
            return


def test_a_save_that_dies_at_any_point_leaves_the_one_before():
    store = DictStore()
    save(store, "t", 1, FILES, META)
    deaths = list(every_death(store.blobs, lambda dying: save(dying, "t", 2, FILES, META)))
    assert len(deaths) == 2 + len(FILES)  # the old manifest, the files, the manifest
    for dying in deaths:
        found = load_newest(dying, "t")
        assert found.checkpoint == load(store, "t", 1)
        assert len(found.skipped) == (1 if dying.list("t/000000000002/") else 0)
        save(dying, "t", 2, FILES, META)
        assert load_newest(dying, "t").checkpoint == load(dying, "t", 2)


def test_a_save_over_the_same_step_never_mixes_the_two():
    store = DictStore()
    save(store, "t", 1, FILES, META)
    save(store, "t", 2, FILES, META)
    changed = {name: data + b"!" for name, data in FILES.items()}
    deaths = list(every_death(store.blobs, lambda dying: save(dying, "t", 2, changed, META)))
    assert load_newest(deaths[0], "t").checkpoint == load(store, "t", 2)  # before anything was touched
    for dying in deaths[1:]:
        assert load_newest(dying, "t").checkpoint == load(store, "t", 1)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in (*FILES, MANIFEST)
        for damage in ("missing", "empty", "half", "longer", "flipped", "other")
        if FILES.get(name) != b"" or damage in ("missing", "longer", "other")
    ],
)
def test_a_checkpoint_with_any_damaged_file_is_skipped_and_reported(store, name, damage):
    save(store, "t", 1, FILES, META)
    save(store, "t", 2, FILES, META)
    path = f"t/000000000002/{name}"
    data = store.get(path)
    changed = {
        "missing": None,
        "empty": b"",
        "half": data[: len(data) // 2],
        "longer": data + b"x",
        "flipped": data[:-1] + bytes([data[-1] ^ 1]) if data else None,
        "other": b"[1, 2, 3]",
    }[damage]
    if changed is None:
        store.delete(path)
    else:
        store.put(path, changed)
    found = load_newest(store, "t")
    assert found.checkpoint == load(store, "t", 1)
    assert len(found.skipped) == 1
    assert "000000000002" in found.skipped[0]
    with pytest.raises(IncompleteCheckpoint):
        load(store, "t", 2)


def test_a_manifest_cut_anywhere_is_no_manifest():
    store = DictStore()
    save(store, "t", 2, FILES, META)
    path = f"t/000000000002/{MANIFEST}"
    whole = store.get(path)
    for length in range(len(whole)):
        store.put(path, whole[:length])
        assert load_newest(store, "t").checkpoint is None


def test_a_manifest_whose_position_was_changed_is_noticed():
    store = DictStore()
    save(store, "t", 2, FILES, META)
    path = f"t/000000000002/{MANIFEST}"
    store.put(path, store.get(path).replace(b'"0": 17', b'"0": 18'))
    assert load_newest(store, "t").skipped == ("t/000000000002: its manifest is damaged",)


def test_a_checkpoint_copied_to_another_step_is_not_that_step():
    store = DictStore()
    save(store, "t", 2, FILES, META)
    for name in store.list("t/"):
        store.put(name.replace("000000000002", "000000000003"), store.get(name))
    assert load_newest(store, "t").checkpoint == load(store, "t", 2)


def test_things_that_are_no_checkpoints_are_left_alone(store):
    save(store, "t", 2, FILES, META)
    for name in ("t/readme", "t/12/x", "t/00000000000x/manifest.json", "t/0000000000030/manifest.json"):
        store.put(name, b"?")
    assert load_newest(store, "t") == Found(load(store, "t", 2), ())
    prune(store, "t", 1)
    assert len([name for name in store.list("t/") if not name.startswith("t/000000000002/")]) == 4


def test_prune_keeps_the_newest_finished_ones(store):
    for step in range(1, 7):
        save(store, "t", step, FILES, META)
    store.delete(f"t/000000000003/{MANIFEST}")  # never finished
    store.put("t/000000000009/a.safetensors", b"being written now")
    assert prune(store, "t", keep=2) == [1, 2, 3, 4]
    assert prune(store, "t", keep=2) == []
    assert {name.split("/")[1] for name in store.list("t/")} == {
        "000000000005",
        "000000000006",
        "000000000009",
    }
    assert load_newest(store, "t").checkpoint == load(store, "t", 6)


def test_prune_does_not_count_what_cannot_be_loaded_and_never_deletes_all(store):
    for step in (1, 2, 3):
        save(store, "t", step, FILES, META)
    for step in (2, 3):
        store.delete(f"t/{step:012d}/{MANIFEST}")
    assert prune(store, "t", keep=1) == []
    assert load_newest(store, "t").checkpoint == load(store, "t", 1)
    with pytest.raises(ValueError, match="at least 1"):
        prune(store, "t", keep=0)


def test_a_prune_that_dies_at_any_point_leaves_loadable_ones_and_is_finished_by_the_next():
    store = DictStore()
    for step in range(1, 5):
        save(store, "t", step, FILES, META)
    deaths = list(every_death(store.blobs, lambda dying: prune(dying, "t", 2)))
    assert len(deaths) == 2 * (1 + len(FILES))
    for dying in deaths:
        assert load_newest(dying, "t") == Found(load(store, "t", 4), ())
        prune(dying, "t", 2)
        assert {name.split("/")[1] for name in dying.list("t/")} == {"000000000003", "000000000004"}


def test_impossible_steps_and_names_are_refused():
    store = DictStore()
    for step in (-1, 10**12):
        with pytest.raises(ValueError, match="step"):
            save(store, "t", step, FILES, META)
    with pytest.raises(ValueError, match=MANIFEST):
        save(store, "t", 1, {MANIFEST: b""}, META)
    assert store.blobs == {}


def test_a_trainer_goes_through_a_checkpoint_bit_equal(store):
    trainer = Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")
    trainer.train(rows(300))
    save(store, "t", trainer.steps, trainer.state(), {"positions": {"0": 300}})
    found = load_newest(store, "t").checkpoint
    assert found is not None
    other = Trainer(SCHEMA, CONFIG, 1, "L5", "cpu")
    other.load(found.files)
    for each in (trainer, other):
        each.train(rows(300, 1))
    assert other.state() == trainer.state()


def test_every_file_is_safetensors_or_json():
    trainer = Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")
    trainer.train(rows(64))
    store = DictStore()
    save(store, "t", 1, trainer.state(), META)
    for name, data in store.blobs.items():
        if name.endswith(".safetensors"):
            header = int.from_bytes(data[:8], "little")
            data = data[8 : 8 + header]
        assert json.loads(data)

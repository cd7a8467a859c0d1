from dataclasses import replace
from pathlib import Path

import pytest

from infra.blobs import Blobs
from learners.batch import ModelConfig
from learners.checkpoint import DictStore, Store
from learners.registry import Lineage, Live, Quarantine, Registry
from tests.learner_rows import CONFIG, SCHEMA

FIRST = Lineage("L1", None, CONFIG.to_dict(), 7, SCHEMA.hash, "first model", event_ms=0, created_ms=1000)
SECOND = replace(FIRST, name="L2", parent="L1.40", why="challenger after alert a-3", event_ms=500)
LIVE = Live("L1", "L1.0", since_ms=1000, event_ms=0, checkpoint="t/learner/1", reason="first model")


@pytest.fixture(params=["dict", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return DictStore() if request.param == "dict" else Blobs(f"file://{tmp_path}/blobs")


def test_an_empty_registry(store):
    registry = Registry(store, "t/registry")
    assert registry.lineages() == []
    assert registry.live() is None
    assert registry.history() == []
    assert registry.next_name() == "L1"


def test_births_are_read_back_in_order_by_any_other_registry_of_the_store(store):
    registry = Registry(store, "t/registry")
    births = [replace(FIRST, name=f"L{n}") for n in range(1, 12)]
    for birth in reversed(births):
        registry.record(birth)
    again = Registry(store, "t/registry")
    assert again.lineages() == births
    assert again.next_name() == "L12"
    assert ModelConfig.from_dict(again.lineages()[0].config) == CONFIG
    assert Registry(store, "u/registry").lineages() == []


def test_the_same_birth_again_writes_nothing():
    store = DictStore()
    registry = Registry(store, "t")
    registry.record(FIRST)
    before = dict(store.blobs)
    registry.record(replace(FIRST, created_ms=2000))  # a learner that repeats its steps
    assert store.blobs == before


def test_a_second_birth_takes_the_name_and_the_former_one_is_kept(store):
    registry = Registry(store, "t")
    births = [replace(SECOND, event_ms=moment) for moment in (500, 501, 502)]
    for birth in (FIRST, *births):
        registry.record(birth)
    assert registry.lineages() == [FIRST, births[2]]
    assert registry.replaced("L2") == births[:2]
    assert registry.replaced("L1") == []
    assert registry.next_name() == "L3"


def test_the_quarantine_of_a_former_birth_does_not_bar_who_takes_its_name(store):
    registry = Registry(store, "t")
    for birth in (FIRST, SECOND):
        registry.record(birth)
        registry.quarantine(Quarantine(birth.name, "worse", {}, event_ms=600, created_ms=1500))
    registry.record(replace(SECOND, created_ms=2000))  # a learner that repeats its steps
    assert set(registry.quarantined()) == {"L1", "L2"}
    registry.record(replace(SECOND, event_ms=900))
    assert set(registry.quarantined()) == {"L1"}


@pytest.mark.parametrize("name", ["", "L", "1", "LX", "L-1", "L1.2", "../L1"])
def test_only_numbered_names_are_taken(name):
    with pytest.raises(ValueError, match="is named"):
        Registry(DictStore(), "t").record(replace(FIRST, name=name))


def test_the_live_pointer_moves_and_its_history_stays(store):
    registry = Registry(store, "t/registry")
    registry.record(FIRST)
    registry.record(SECOND)
    swap = Live("L2", "L2.3", since_ms=2000, event_ms=900, checkpoint="t/learner/2", reason="e-value 210")
    back = replace(LIVE, version="L1.60", since_ms=3000, reason="rolled back")
    for live in (LIVE, swap, back):
        registry.set_live(live)
        assert registry.live() == live
    assert Registry(store, "t/registry").history() == [LIVE, swap, back]


def test_the_same_move_again_is_one_move():
    registry = Registry(DictStore(), "t")
    registry.record(FIRST)
    registry.set_live(LIVE)
    registry.set_live(replace(LIVE, since_ms=5000))
    assert registry.history() == [LIVE]


def test_what_was_never_born_cannot_be_live():
    registry = Registry(DictStore(), "t")
    registry.record(FIRST)
    with pytest.raises(ValueError, match="L2 must be recorded"):
        registry.set_live(replace(LIVE, lineage="L2"))
    assert registry.live() is None

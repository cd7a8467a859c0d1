import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from learners import weights
from learners.batch import FAMILIES, Schema
from learners.slot import BadUpdate, MissedRefresh, Slot, encode_full, encode_refresh
from learners.trainer import Trainer
from tests.learner_rows import CONFIG, SCHEMA, rows

every_family = pytest.mark.parametrize("family", FAMILIES)


def in_place(slot: Slot, meta: dict[str, Any], payload: bytes) -> bool:
    return slot.apply(meta, payload)


def in_a_copy(slot: Slot, meta: dict[str, Any], payload: bytes) -> bool:
    """As a worker takes a large refresh, whose payload can be written to; what served goes on unchanged."""
    served, before = slot.model, contents(slot)
    ready = slot.refreshed(meta, bytearray(payload))
    assert contents(slot) == before
    if ready is not None:
        slot.take(ready)
        assert not any(mine is its for mine, its in zip(tensors(served), tensors(slot.model), strict=True))
    return ready is not None


def tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


both_ways = pytest.mark.parametrize("apply", [in_place, in_a_copy])


def pair(family: str = "dcn", lineage: str = "L1") -> tuple[Trainer, Slot]:
    config = replace(CONFIG, family=family)
    return Trainer(SCHEMA, config, 7, lineage, "cpu"), Slot(SCHEMA, config, 7, "cpu")


def refresh(trainer: Trainer, seed: int = 0, created_ms: int = 100) -> tuple[dict[str, Any], bytes]:
    """What the serving side gets after some training; meta goes through JSON as it does on the wire."""
    trainer.train(rows(64, seed))
    meta, payload = encode_refresh(trainer, event_ms=50, created_ms=created_ms)
    return json.loads(json.dumps(meta)), payload


def full(trainer: Trainer, created_ms: int = 100) -> tuple[dict[str, Any], bytes]:
    meta, payload = encode_full(trainer, event_ms=50, created_ms=created_ms)
    return json.loads(json.dumps(meta)), payload


def contents(slot: Slot) -> dict[str, Any]:
    every_row = torch.ones(len(slot.model.table), dtype=torch.bool)
    tensors = weights.extract(slot.model, every_row)
    found: dict[str, Any] = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    stamps = (slot.version, slot.chain, slot.event_ms, slot.created_ms)
    return found | {"stamps": stamps, "model": id(slot.model)}


def assert_serves(slot: Slot, trainer: Trainer) -> None:
    batch = rows(200, seed=5)
    scores, version = slot.score(batch.numbers, batch.categories)
    np.testing.assert_array_equal(scores, trainer.score(batch.numbers, batch.categories))
    assert version == trainer.version == slot.version


@every_family
def test_a_new_slot_is_the_untrained_first_lineage(family):
    trainer, slot = pair(family)
    assert_serves(slot, trainer)
    assert slot.version == "L1.0"


@both_ways
@every_family
def test_refreshes_keep_the_slot_bit_equal_to_the_trainer(family, apply):
    trainer, slot = pair(family)
    for seed in range(5):
        assert apply(slot, *refresh(trainer, seed, created_ms=100 + seed))
        assert_serves(slot, trainer)
        assert torch.equal(slot.model.table, trainer.model.table)
    assert (slot.version, slot.event_ms, slot.created_ms) == ("L1.5", 50, 104)


def test_a_refresh_is_much_smaller_than_the_whole_model():
    trainer = Trainer(SCHEMA, replace(CONFIG, rows=100_000), 7, "L1", "cpu")
    trainer.train(rows(20_000))
    _, everything = full(trainer)
    _, changed = refresh(trainer)
    assert len(changed) < len(everything) < 100_000 * 2 * 5 * 4 / 10


@both_ways
def test_older_refreshes_are_ignored(apply):
    trainer, slot = pair()
    updates = [refresh(trainer, seed) for seed in range(3)]
    for update in updates:
        assert apply(slot, *update)
    before = contents(slot)
    for update in updates:
        assert not apply(slot, *update)
    assert contents(slot) == before


def test_a_missed_refresh_is_noticed_and_a_whole_model_mends_it():
    trainer, slot = pair()
    slot.apply(*refresh(trainer, 0))
    refresh(trainer, 1)  # lost
    third = refresh(trainer, 2)
    kept = full(trainer)
    before = contents(slot)
    for apply in (in_place, in_a_copy):
        with pytest.raises(MissedRefresh, match=r"L1\.3 does not follow L1\.1"):
            apply(slot, *third)
    assert contents(slot) == before
    slot.load_full(*kept)
    assert_serves(slot, trainer)
    assert not slot.apply(*third)  # it is in the whole model already
    assert slot.apply(*refresh(trainer, 3))
    assert_serves(slot, trainer)


def test_a_whole_model_written_after_a_refresh_starts_a_late_slot_that_then_follows():
    trainer, _ = pair()
    for seed in range(4):
        refresh(trainer, seed)
    kept = full(trainer)
    late = Slot(SCHEMA, CONFIG, 7, "cpu")
    late.load_full(*kept)
    assert late.version == "L1.4"
    assert late.apply(*refresh(trainer, 9))
    assert_serves(late, trainer)


def test_a_learner_that_went_back_to_a_checkpoint_is_told_apart_from_the_one_that_went_on():
    trainer, slot = pair()
    slot.apply(*refresh(trainer, 0))
    state = trainer.state()
    slot.apply(*refresh(trainer, 1))
    back = Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")
    back.load(state)
    refresh(back, 99)  # another L1.2 than the slot has
    forked = refresh(back, 2)
    with pytest.raises(MissedRefresh):
        slot.apply(*forked)
    back.advance(3)
    assert slot.apply(*full(back))
    assert_serves(slot, back)


def test_a_learner_that_repeats_the_same_steps_is_followed_without_a_whole_model():
    trainer, slot = pair()
    state = trainer.state()
    for seed in range(3):
        slot.apply(*refresh(trainer, seed))
    back = Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")
    back.load(state)
    assert [slot.apply(*refresh(back, seed)) for seed in range(4)] == [False, False, False, True]
    assert_serves(slot, back)


def test_a_swap_brings_another_lineage_with_its_own_settings():
    trainer, slot = pair()
    slot.apply(*refresh(trainer, 0))
    challenger = trainer.clone("L2", replace(CONFIG, family="deepfm", hidden=(4,), rows=32))
    challenger.train(rows(300, 8))
    assert slot.apply(*full(challenger, created_ms=200))
    assert_serves(slot, challenger)
    assert slot.version == "L2.1"
    assert slot.apply(*refresh(challenger, 9, created_ms=300))
    assert_serves(slot, challenger)


def test_refreshes_of_the_replaced_lineage_are_ignored_and_those_of_an_unknown_newer_one_reported():
    trainer, slot = pair()
    slot.apply(*refresh(trainer, 0, created_ms=100))
    challenger = trainer.clone("L2")
    old = refresh(trainer, 1, created_ms=150)
    slot.apply(*full(challenger, created_ms=200))
    assert not slot.apply(*old)
    unknown = trainer.clone("L3")
    newer = refresh(unknown, 2, created_ms=300)
    before = contents(slot)
    with pytest.raises(MissedRefresh, match=r"L3\.1 does not follow L2\.0"):
        slot.apply(*newer)
    assert contents(slot) == before


def test_a_swap_can_go_back_to_an_older_lineage():
    trainer, slot = pair()
    challenger = trainer.clone("L2")
    slot.apply(*full(challenger, created_ms=200))
    trainer.train(rows(100))
    assert slot.apply(*full(trainer, created_ms=300))
    assert_serves(slot, trainer)
    assert not slot.apply(*full(trainer, created_ms=300))


Damage = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]


def signed(meta: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """The payload with a right SHA-256, so that the checks behind it are reached."""
    return meta | {"sha256": hashlib.sha256(payload).hexdigest()}, payload


def retouched(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(meta: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        tensors = tensors_from_bytes(payload)
        change(tensors)
        return signed(meta, tensors_to_bytes({name: t.contiguous() for name, t in tensors.items()}))

    return damage


def put(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return retouched(lambda tensors: tensors.update({name: value(tensors[name])}))


def poked(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def poke(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return poke


DAMAGES: dict[str, Damage] = {
    "truncated": lambda meta, payload: (meta, payload[:-1]),
    "empty": lambda meta, payload: (meta, b""),
    "truncated but signed": lambda meta, payload: signed(meta, payload[: len(payload) // 2]),
    "empty but signed": lambda meta, payload: signed(meta, b""),
    "not safetensors": lambda meta, payload: signed(meta, b"\x00" * 100),
    "a pickle": lambda meta, payload: signed(meta, b"\x80\x04K\x01."),
    "one bit flipped": lambda meta, payload: (meta, payload[:-1] + bytes([payload[-1] ^ 1])),
    "wrong sha256": lambda meta, payload: (meta | {"sha256": "0" * 64}, payload),
    "other schema": lambda meta, payload: (
        meta | {"schema": Schema(SCHEMA.numbers, SCHEMA.categories, "fingerprint-2").hash},
        payload,
    ),
    "NaN weight": put("output.weight", poked(float("nan"))),
    "infinite bias": put("output.bias", poked(float("inf"))),
    "NaN row": put("table.rows", poked(float("nan"))),
    "NaN mean": put("mean", poked(float("nan"))),
    "negative count": put("seen", poked(-1.0)),
    "wrong shape": put("output.weight", lambda tensor: tensor[:, 1:]),
    "same size, other shape": put("output.weight", lambda tensor: tensor.T),
    "wrong type": put("deep.0.weight", lambda tensor: tensor.to(torch.float64)),
    "narrow rows": put("table.rows", lambda tensor: tensor[:, 1:]),
    "fewer rows than numbers": put("table.rows", lambda tensor: tensor[1:]),
    "row number too large": put("table.index", poked(2**40)),
    "row number negative": put("table.index", lambda tensor: tensor - tensor[0] - 1),
    "row twice": put("table.index", lambda tensor: torch.cat((tensor[:1], tensor[:1], tensor[2:]))),
    "row numbers as floats": put("table.index", lambda tensor: tensor.to(torch.float32)),
    "tensor missing": retouched(lambda tensors: tensors.pop("mean")),
    "tensor too many": retouched(lambda tensors: tensors.update(extra=torch.zeros(1))),
    "meta lacks a key": lambda meta, payload: ({k: v for k, v in meta.items() if k != "chain"}, payload),
    "meta with a text for a number": lambda meta, payload: (meta | {"refresh": "7"}, payload),
    "meta of an unknown kind": lambda meta, payload: (meta | {"kind": "patch"}, payload),
    "meta that names another version": lambda meta, payload: (meta | {"version": "L1.77"}, payload),
}
FULL_DAMAGES = DAMAGES | {
    "no settings": lambda meta, payload: ({k: v for k, v in meta.items() if k != "config"}, payload),
    "impossible settings": lambda meta, payload: (meta | {"config": {"rows": -1}}, payload),
    "settings too large for any machine": lambda meta, payload: (
        meta | {"config": {"rows": 10**15}},
        payload,
    ),
    "settings of a wrong type": lambda meta, payload: (meta | {"config": {"rows": "many"}}, payload),
    "settings that are no settings": lambda meta, payload: (meta | {"config": 3}, payload),
    "other settings": lambda meta, payload: (meta | {"config": meta["config"] | {"hidden": [3]}}, payload),
    "no seed": lambda meta, payload: (meta | {"seed": None}, payload),
}


@both_ways
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_refresh_leaves_the_slot_bit_equal_and_the_good_one_still_applies(damage, apply):
    trainer, slot = pair()
    slot.apply(*refresh(trainer, 0))
    good = refresh(trainer, 1)
    before = contents(slot)
    with pytest.raises(BadUpdate):
        apply(slot, *DAMAGES[damage](*good))
    assert contents(slot) == before
    assert apply(slot, *good)
    assert_serves(slot, trainer)


@pytest.mark.parametrize("damage", FULL_DAMAGES)
def test_a_bad_swap_leaves_the_slot_bit_equal_and_the_good_one_still_applies(damage):
    trainer, slot = pair()
    slot.apply(*refresh(trainer, 0))
    challenger = trainer.clone("L2")
    challenger.train(rows(100, 1))
    good = full(challenger)
    before = contents(slot)
    for take in (slot.apply, slot.load_full):
        with pytest.raises(BadUpdate):
            take(*FULL_DAMAGES[damage](*good))
        assert contents(slot) == before
    assert slot.apply(*good)
    assert_serves(slot, challenger)


def test_a_refresh_is_not_taken_for_a_whole_model():
    trainer, slot = pair()
    before = contents(slot)
    with pytest.raises(BadUpdate, match="not a whole model"):
        slot.load_full(*refresh(trainer))
    assert contents(slot) == before


@settings(max_examples=40)
@given(data=st.data())
def test_no_truncation_and_no_flipped_byte_gets_in(data):
    trainer, slot = pair("logistic")
    meta, payload = refresh(trainer)
    before = contents(slot)
    cut = data.draw(st.integers(0, len(payload) - 1))
    flip = bytes([payload[cut] ^ data.draw(st.integers(1, 255))])
    for bad in (payload[:cut], payload[:cut] + flip + payload[cut + 1 :]):
        with pytest.raises(BadUpdate):
            slot.apply(meta, bad)
    assert contents(slot) == before


def test_a_slot_beside_serves_the_prepared_model_and_follows_it_while_the_first_goes_on():
    trainer, slot = pair()
    slot.apply(*refresh(trainer, 0))
    challenger, before = trainer.clone("L2"), contents(slot)
    challenger.train(rows(300, 8))
    other = slot.beside(slot.prepare(*full(challenger)))
    assert other.apply(*refresh(challenger, 9))
    assert_serves(other, challenger)
    assert contents(slot) == before
    assert slot.apply(*refresh(trainer, 1))
    assert_serves(slot, trainer)
    assert_serves(other, challenger)


def test_a_slot_scores_no_rows():
    _, slot = pair()
    scores, version = slot.score(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.int64))
    assert scores.shape == (0,)
    assert version == "L1.0"

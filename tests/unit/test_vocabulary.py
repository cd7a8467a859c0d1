"""Exact tables: no two ids share a row, rare and old ones have none, and wherever the model goes it is the same."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from learners import weights
from learners.batch import Batch, ModelConfig, Schema
from learners.models import vocabulary
from learners.models.vocabulary import Vocabulary
from learners.slot import BadUpdate, Slot, encode_full, encode_refresh
from learners.trainer import Trainer
from tests.learner_rows import RICH, contents, rows

SCHEMA = Schema(("amount",), ("shop", "card"), "f")
EXACT: dict[str, Any] = {
    "table": "exact",
    "rows": 64,
    "embedding": 4,
    "hidden": (8,),
    "batch_size": 32,
    "learning_rate": 0.01,
}
FIELDS = np.array([0, 1], np.int64)


def of(admit_after: int = 2, expire_after: int = 0, size: int = 18) -> Vocabulary:
    config = ModelConfig(table="exact", rows=size, admit_after=admit_after, expire_after=expire_after)
    return Vocabulary(config, FIELDS)


def keys(*ids: int) -> np.ndarray:
    """Rows with these ids in the first field, and nothing in the second."""
    return np.array([[key, 0] for key in ids], np.int64)


def known(words: Vocabulary, *ids: int) -> list[bool]:
    return [int(row) > 1 for row in words.rows(keys(*ids))[:, 0]]


def test_an_id_gets_a_row_once_it_has_come_often_enough() -> None:
    words = of(admit_after=3)
    assert words.note(keys(5, 6, 5))[0].tolist() == []
    assert known(words, 5, 6) == [False, False]
    admitted, evicted = words.note(keys(7, 5))
    assert (admitted.tolist(), evicted.tolist()) == ([2], [])
    assert words.rows(keys(5, 6, 0)).tolist() == [[2, 18], [1, 18], [0, 18]]
    assert words.note(np.array([[0, 5]] * 3))[0].tolist() == [20]  # the same id of another field
    assert words.rows(np.array([[5, 5]])).tolist() == [[2, 20]]


def test_an_id_that_was_not_seen_for_long_loses_its_row_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vocabulary, "SWEEP_EVERY", 10)
    words = of(admit_after=1, expire_after=5)
    words.note(keys(5, 6))
    words.note(keys(6, 6))
    assert [words.note(keys(9))[1].tolist() for _ in range(5)] == [
        [],
        [],
        [],
        [],
        [],
    ]  # 5 is old, but nobody looked
    assert words.note(keys(6, 9, 9))[1].tolist() == [2]
    assert known(words, 5, 6, 9) == [False, True, True]


def test_a_full_field_makes_room_by_what_was_not_seen_for_longest_and_never_by_the_newest() -> None:
    words = of(admit_after=1)  # 16 rows for ids
    for key in range(1, 17):
        words.note(keys(key))
    words.note(keys(1))
    admitted, evicted = words.note(keys(100))
    assert (admitted.tolist(), evicted.tolist()) == ([], [3, 4])  # those of 2 and 3: an eighth of 16
    assert words.note(keys(100))[0].tolist() == [3]
    assert known(words, 1, 2, 3, 4, 100) == [True, False, False, True, True]
    crowd = of(admit_after=1)
    assert crowd.note(keys(*range(1, 30)))[1].tolist() == []
    assert sum(known(crowd, *range(1, 30))) == 16


def test_counts_fade_so_that_what_comes_once_in_a_while_stays_out() -> None:
    words = of(admit_after=2)
    words.note(keys(5))
    words.noted = len(words.counts) - 1  # as after so many others
    words.note(keys(6))
    assert words.noted == words.counts.sum() == 0
    assert words.note(keys(5))[0].tolist() == []
    assert words.note(keys(5))[0].tolist() == [2]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(-3, 3)), min_size=1, max_size=9), max_size=30)
)
def test_no_two_ids_share_a_row_and_the_map_is_its_own_inverse(steps: list[list[tuple[int, int]]]) -> None:
    words, held = of(admit_after=1, expire_after=20), dict[int, int]()
    for step in steps:
        admitted, evicted = words.note(np.array(step, np.int64))
        assert not set(admitted.tolist()) & set(evicted.tolist())
        assert not set(admitted.tolist()) & set(held) - set(evicted.tolist())
        for row in evicted.tolist():
            held.pop(row)
        held |= {row: int(words.ids[row]) for row in admitted.tolist()}
        assert held == {row: int(words.ids[row]) for row in np.flatnonzero(words.ids)}
        pairs = [(row // 18, key) for row, key in held.items()]
        assert max(Counter(pairs).values(), default=1) == 1
        for row, key in held.items():
            assert words.rows(np.full((1, 2), key))[0, row // 18] == row


def learner(**more: Any) -> Trainer:
    return Trainer(SCHEMA, replace(ModelConfig(family="dcn"), **(EXACT | more)), 7, "L1", "cpu")


def growing(n: int, start: int, seed: int) -> Batch:
    """Rows whose shops and cards are among 200 that follow one another, beginning at `start`."""
    random = np.random.default_rng(seed)
    values = start + random.geometric(0.05, (n, 2)).clip(1, 200)
    label = ((values[:, 0] % 2 == 1) ^ (random.random(n) < 0.1)).astype(np.float32)
    numbers, moments = random.normal(0, 1, (n, 1)).astype(np.float32), np.arange(n, dtype=np.int64)
    names = [f"e-{i}" for i in range(n)]
    return Batch(names, moments, moments, numbers, values * 2_654_435_761, np.full(n, 0.5, np.float32), label)


UNSEEN = growing(300, 0, 99)


def scores(trainer: Trainer, batch: Batch) -> np.ndarray:
    return trainer.score(batch.numbers, batch.categories)


def sent(update: tuple[dict[str, Any], bytes]) -> tuple[dict[str, Any], bytes]:
    return json.loads(json.dumps(update[0])), update[1]


def everything(trainer: Trainer) -> dict[str, bytes]:
    words = trainer.model.vocabulary
    assert words is not None
    arrays = {name: getattr(words, name).tobytes() for name in ("ids", "seen", "counts")}
    return contents(trainer) | arrays | {"clock": repr((words.clock, words.noted)).encode()}


def test_refreshes_carry_new_ids_and_those_that_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "SWEEP_EVERY", 500)
    trainer = learner(expire_after=800)
    slot = Slot(SCHEMA, trainer.config, 7, "cpu")
    for step in range(12):
        batch = growing(300, 30 * step, step)
        trainer.train(batch)
        assert slot.apply(*sent(encode_refresh(trainer, event_ms=1, created_ms=1)))
        for unseen in (batch, UNSEEN):
            found, version = slot.score(unseen.numbers, unseen.categories)
            np.testing.assert_array_equal(found, scores(trainer, unseen))
            assert version == trainer.version
    taken = np.flatnonzero(slot.model.vocabulary.ids)  # type: ignore[union-attr]
    assert 0 < len(taken) <= 2 * 62
    assert known_of(trainer, UNSEEN).mean() < 0.1  # the first ones are long gone
    fresh = Slot(SCHEMA, ModelConfig(), 3, "cpu")
    fresh.load_full(*sent(encode_full(trainer, event_ms=1, created_ms=1)))
    np.testing.assert_array_equal(fresh.score(batch.numbers, batch.categories)[0], scores(trainer, batch))


def known_of(trainer: Trainer, batch: Batch) -> np.ndarray:
    assert trainer.model.vocabulary is not None
    return trainer.model.vocabulary.rows(batch.categories)[:, 0] > 1


def test_a_checkpoint_goes_on_bit_equal_and_a_copy_learns_alike() -> None:
    trainer = learner(expire_after=500)
    for step in range(4):
        trainer.train(growing(300, 40 * step, step))
    trainer.delta()
    trainer.train(growing(64, 160, 9))
    other = Trainer(SCHEMA, ModelConfig(), 1, "L9", "cpu")
    other.load(trainer.state())
    assert everything(other) == everything(trainer)
    for each in (trainer, other):
        for step in range(4):
            each.train(growing(300, 40 * step, 20 + step))
    assert everything(other) == everything(trainer)
    assert other.state() == trainer.state()
    child, before = trainer.clone("L2"), everything(trainer)
    np.testing.assert_array_equal(scores(child, UNSEEN), scores(trainer, UNSEEN))
    child.train(growing(300, 500, 3))
    assert everything(trainer) == before
    assert known_of(child, growing(300, 500, 4)).any()


def test_a_copy_with_a_hashed_table_takes_over_no_rows() -> None:
    trainer = learner()
    trainer.train(growing(300, 0, 1))
    child = trainer.clone("L2", replace(trainer.config, table="hashed"))
    assert child.model.vocabulary is None
    assert not child.touched.any()


def test_a_rejected_step_meets_nobody() -> None:
    trainer, clean = learner(), learner()
    batch = growing(96, 0, 1)
    batch.label[40] = np.nan
    trainer.train(batch)
    clean.train(batch.slice(0, 32))
    clean.train(batch.slice(64, 96))
    assert everything(trainer) == everything(clean)
    assert trainer.rejected_steps == 1


def test_a_new_row_starts_as_the_one_that_rare_ids_share_and_a_free_one_as_at_first() -> None:
    trainer = learner(admit_after=1, rows=16)
    first = trainer.model.table.clone()
    trainer.train(growing(32, 0, 1))
    words = trainer.model.vocabulary
    assert words is not None
    for row in np.flatnonzero(words.ids):
        assert torch.equal(trainer.model.table[row], trainer.model.table[row // 16 * 16 + 1])
    for step in range(5):
        trainer.train(growing(32, 300 * step, step))
    free = np.flatnonzero(words.ids == 0)
    free = free[free % 16 > 1]
    assert len(free)
    assert torch.equal(trainer.model.table[free], first[free])
    assert not trainer.touched[free].any()
    memory = trainer.lesson.memory(torch.from_numpy(free))
    assert not any(value.any() for name, value in memory.items() if name.startswith("table"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[weights.IDS].__setitem__(-1, t[weights.IDS][-2]), "an id has two rows"),
        (lambda t: t[weights.IDS].__setitem__(0, 5), "a reserved row has an id"),
        (lambda t: t.__setitem__(weights.IDS, t[weights.IDS].float()), "table.ids is torch.float32"),
        (lambda t: t.__setitem__(weights.IDS, t[weights.IDS][1:].clone()), "of shape"),
        (lambda t: t.pop(weights.IDS), "other tensors"),
    ],
)
def test_a_map_that_cannot_be_is_refused_and_changes_nothing(change: Any, words: str) -> None:
    trainer = learner()
    slot = Slot(SCHEMA, trainer.config, 7, "cpu")
    trainer.train(growing(300, 0, 1))
    slot.apply(*sent(encode_refresh(trainer, event_ms=1, created_ms=1)))
    before = slot.score(UNSEEN.numbers, UNSEEN.categories)
    trainer.train(growing(300, 30, 2))
    tensors = weights.extract(trainer.model, trainer.touched)
    assert weights.problem(slot.model, tensors) is None
    change(tensors)
    reason = weights.problem(slot.model, tensors)
    assert reason is not None
    assert words in reason
    np.testing.assert_array_equal(slot.score(UNSEEN.numbers, UNSEEN.categories)[0], before[0])
    hashed = Trainer(SCHEMA, replace(trainer.config, table="hashed"), 7, "L1", "cpu")
    hashed.train(growing(300, 0, 1))
    with pytest.raises(BadUpdate, match="other tensors"):
        slot.load_full(
            encode_full(hashed, event_ms=1, created_ms=1)[0] | {"config": trainer.config.to_dict()},
            encode_full(hashed, event_ms=1, created_ms=1)[1],
        )


@pytest.mark.parametrize("family", ["logistic", "text_cnn", "gru", "deepfm"])
def test_sequences_texts_and_lists_have_words_too(family: str) -> None:
    config = replace(ModelConfig(family=family, units=8), **EXACT)
    trainer = Trainer(RICH, config, 7, "L1", "cpu")
    slot = Slot(RICH, config, 7, "cpu")
    batch = rows(500, 1, RICH)
    batch.categories[:, 2:-3] %= 9
    trainer.train(batch)
    assert trainer.model.vocabulary is not None
    assert (trainer.model.vocabulary.ids.reshape(-1, 64) != 0).any(1).all()
    slot.apply(*sent(encode_refresh(trainer, event_ms=1, created_ms=1)))
    found = slot.score(batch.numbers, batch.categories)[0]
    np.testing.assert_array_equal(found, trainer.score(batch.numbers, batch.categories))


def test_an_exact_table_needs_some_rows() -> None:
    with pytest.raises(UserError, match="rows is 15 with an exact table"):
        ModelConfig(table="exact", rows=15)

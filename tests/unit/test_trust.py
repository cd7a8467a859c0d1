"""What one entity may teach is bounded; nobody learns from those held out; challengers must be better there too."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from learners.arena import Arena, Decision
from learners.batch import Batch, ModelConfig
from learners.challenger import Challenger, evidence, reason
from learners.drift import DriftConfig
from learners.packing import pack, unpack
from learners.prequential import Prequential
from learners.trainer import Trainer
from learners.trust import Trust, TrustConfig, held_out
from learners.verdict import PairedTest
from tests import learner_log
from tests.learner_rows import SCHEMA, rows
from tests.stream_records import TRIPS, task

CONFIG = ModelConfig(family="logistic", rows=64, batch_size=64, learning_rate=0.01)
SHARE = 0.3


def of(entities: Any, seed: int = 0) -> Batch:
    """Rows of these entities, one a millisecond, that nobody served."""
    batch = rows(len(entities), seed)
    return replace(
        batch, entity=np.array(entities, np.int64), served=np.full(len(entities), np.nan, np.float32)
    )


@given(
    entities=st.lists(st.integers(0, 4), max_size=150),
    cuts=st.lists(st.integers(0, 150), max_size=4),
    window=st.integers(1, 20),
    cap=st.integers(1, 20),
)
def test_of_any_window_at_most_the_cap_of_one_entity_is_learned(
    entities: list[int], cuts: list[int], window: int, cap: int
) -> None:
    cap = min(cap, window)
    whole, parts = (Trust(TrustConfig(cap=cap, window=window)) for _ in range(2))
    batch = of(entities)
    admitted = set(whole.admitted(batch).event_ids)
    learned = [
        entity if name in admitted else 0 for name, entity in zip(batch.event_ids, entities, strict=True)
    ]
    for start in range(len(learned)):
        counts = Counter(learned[start : start + window])
        counts.pop(0, None)
        assert max(counts.values(), default=0) <= cap
    for at, entity in enumerate(entities):  # and none is left out without need
        if entity and not learned[at]:
            assert learned[max(at - window + 1, 0) : at].count(entity) == cap
    assert all(batch.event_ids[at] in admitted for at, entity in enumerate(entities) if not entity)
    # However the rows are handed over, and with a restart between any two of them.
    found: list[str] = []
    for start, stop in pairwise([0, *sorted(min(cut, len(batch)) for cut in cuts), len(batch)]):
        found += parts.admitted(batch.slice(start, stop)).event_ids
        saved, parts = parts, Trust(TrustConfig(cap=cap, window=window))
        parts.load(unpack(pack(saved.state())))
    assert set(found) == admitted


def test_about_the_share_is_held_out_and_the_same_entities_for_ever() -> None:
    entities = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 20_000)
    held = held_out(entities, SHARE)
    assert abs(held.mean() - SHARE) < 0.01
    np.testing.assert_array_equal(held_out(entities[::-1], SHARE)[::-1], held)
    assert not held[~held_out(entities, 0.4)].any()  # a larger share has the smaller one in it
    assert not held_out(entities, 0.0).any()
    assert not held_out(np.zeros(9, np.int64), 0.5).any()
    assert abs(held[entities % 4 == 1].mean() - SHARE) < 0.02  # nothing to do with the partition


def test_no_arm_learns_from_what_is_held_out_and_all_of_it_is_measured() -> None:
    entities = np.random.default_rng(2).integers(1, 2**40, 3_000)
    batch, held = of(entities, 3), held_out(entities, SHARE)
    made = Arena(SCHEMA, CONFIG, CONFIG, DriftConfig(), 1, device="cpu", trust=TrustConfig(holdout=SHARE))
    made.observe(batch, created_ms=0)
    alone = Trainer(SCHEMA, CONFIG, 1, "L1", "cpu")
    for start in range(0, 3_000, 64):
        part = slice(start, min(start + 64, 3_000))
        alone.train(batch.slice(part.start, part.stop).take(~held[part]))
    unseen = rows(100, 9)
    np.testing.assert_array_equal(
        made.champion.score(unseen.numbers, unseen.categories), alone.score(unseen.numbers, unseen.categories)
    )
    assert (made.examples, made.champion.examples) == (3_000, int((~held).sum()))


def test_a_step_of_which_nothing_may_be_learned_changes_no_model() -> None:
    made = Arena(
        SCHEMA, CONFIG, CONFIG, DriftConfig(), 1, device="cpu", trust=TrustConfig(cap=64, window=1_000)
    )
    made.observe(of([5] * 400), created_ms=0)
    assert (made.examples, made.champion.examples) == (400, 64)


def poisoned(holdout: float) -> list[Decision]:
    """Decisions of an arena where, from row 4,000 on, an entity that teaches sends half of all, with turned labels."""
    random, n = np.random.default_rng(4), 9_000
    names = random.integers(1, 2**40, 300)
    attacker = next(name for name in range(1, 99) if not held_out(np.array([name]), 0.5)[0])
    attack = (np.arange(n) >= 4_000) & (random.random(n) < 0.5)
    batch = of(np.where(attack, attacker, random.choice(names, n)), 7)
    # Positive numbers stand for the item that the attack is about, which others seldom have.
    numbers = np.abs(batch.numbers) * np.where(attack | (random.random(n) < 0.1), 1.0, -1.0)[:, None]
    label = (random.random(n) < np.where(numbers[:, 0] > 0, 0.9, 0.3)).astype(np.float32)
    batch = replace(batch, numbers=numbers.astype(np.float32), label=np.where(attack, 1.0 - label, label))
    config = replace(CONFIG, learning_rate=0.005)
    trust = TrustConfig(holdout=holdout)
    made = Arena(
        SCHEMA, config, replace(config, learning_rate=0.03), DriftConfig(), 1, device="cpu", trust=trust
    )
    return [event for event in made.observe(batch, created_ms=0) if isinstance(event, Decision)]


def test_a_challenger_that_learned_poison_wins_over_all_and_not_on_the_holdout() -> None:
    assert "promote" in [decision.action for decision in poisoned(0.0)]
    with_holdout = poisoned(0.2)
    assert "start" in [decision.action for decision in with_holdout]
    assert "promote" not in [decision.action for decision in with_holdout]


def test_an_arena_goes_on_exactly_from_its_state() -> None:
    trust = TrustConfig(cap=3, window=200, holdout=0.2)
    first, second = (
        Arena(SCHEMA, CONFIG, CONFIG, DriftConfig(), 1, device="cpu", trust=trust) for _ in range(2)
    )
    batch = of(np.random.default_rng(5).integers(1, 30, 1_200), 6)
    first.observe(batch.slice(0, 700), created_ms=0)
    second.load(*first.state())
    for each in (first, second):
        each.observe(batch.slice(700, 1_200), created_ms=0)
    assert first.champion.examples < 900
    assert first.state() == second.state()


def on_trial() -> Challenger:
    trainer = Trainer(SCHEMA, CONFIG, 1, "L2", "cpu")
    return Challenger(trainer, "warm", "ranks-1", PairedTest(0.01, 0.0), holdout=PairedTest(0.1, 0.0))


def test_the_evidence_says_what_the_holdout_says() -> None:
    random, made = np.random.default_rng(3), on_trial()
    held = np.arange(600) % 5 == 0
    champion = random.normal(0.6, 0.1, 600)
    own = champion + np.where(held, 0.3, -0.3)
    made.update(champion, own, held=held)
    facts = evidence(made, "L1", Prequential(100))
    assert (made.test.verdict, made.verdict, made.unconfirmed) == ("promote", "undecided", True)
    assert facts["holdout"]["n"] == 120
    assert facts["holdout"]["mean_difference"] == pytest.approx(-0.3)
    assert facts["holdout"]["e_value"] <= 1
    assert "not on what is held out" in reason("expire", made, "L1", "")
    made.update(champion[held], own[held] - 0.9, held=held[held])
    made.update(champion[held], own[held] - 0.9, held=held[held])
    assert (made.verdict, made.unconfirmed) == ("promote", False)
    again = Challenger.restored(
        made.trainer, PairedTest(0.01, 0.0), made.segments, PairedTest(0.1, 0.0), made.record()
    )
    assert again.record() == made.record()
    assert again.verdict == "promote"


def test_the_entity_of_a_row_is_its_key() -> None:
    labelled = learner_log.labelled(learner_log.small_task(), 50)
    keys = np.arange(50)[:, None] * np.array([7, 1])[: labelled.rows.keys.shape[1]]
    labelled = replace(labelled, rows=replace(labelled.rows, keys=keys))
    np.testing.assert_array_equal(labelled.batch().entity, np.arange(50) * 7)


def test_the_section_is_read() -> None:
    made = task("[trust]\ncap = 50\nwindow = 2000\nholdout = 0.1\nholdout_alpha = 0.05\n")
    assert made.trust == TrustConfig(50, 2_000, 0.1, 0.05)
    assert task("").trust == TrustConfig()


@pytest.mark.parametrize(
    ("lines", "at", "said", "fix"),
    [
        (["window = 100"], 1, "trust.window has no effect without cap", "add cap = 50"),
        (
            ["cap = 5", "holdout_alpha = 0.1"],
            2,
            "trust.holdout_alpha has no effect without holdout",
            "add holdout",
        ),
        (["cap = 6000"], 1, "trust: cap must be from 0 to window", "choose a value"),
        (["holdout = 0.7"], 1, "trust: holdout must be from 0 to 0.5", "choose a value"),
        (["cup = 3"], 1, "unknown key trust.cup", 'did you mean "cap"'),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(lines: list[str], at: int, said: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        task("[trust]\n" + "\n".join(lines) + "\n")
    line = len((TRIPS + "[trust]").splitlines())
    assert caught.value.message.startswith(f"trips.toml:{line + at}: {said}")
    assert fix in caught.value.fix

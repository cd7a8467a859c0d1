"""Steps that were rejected are told of: once, then again only after a while, also across a restart."""

from dataclasses import replace

import torch

from learners.arena import Arena
from learners.drift import Alert, DriftConfig
from tests.learner_rows import CONFIG, SCHEMA, rows

DRIFT = DriftConfig(cooldown=300)


def arena_of(broken: bool = True) -> Arena:
    """An arena whose champion has a weight that makes every step overflow, or not."""
    arena = Arena(SCHEMA, replace(CONFIG, family="mlp"), CONFIG, DRIFT, 7, device="cpu")
    if broken:
        break_it(arena)
    return arena


def break_it(arena: Arena) -> None:
    with torch.no_grad():
        next(iter(arena.champion.model.parameters())).fill_(3e38)


def alerts(arena: Arena, seed: int, n: int = 96) -> list[Alert]:
    return [event for event in arena.observe(rows(n, seed), 1) if isinstance(event, Alert)]


def test_a_model_that_learns_raises_no_alert() -> None:
    assert alerts(arena_of(broken=False), 1, 500) == []


def test_the_first_rejected_step_is_told_and_then_all_since_after_the_cooldown() -> None:
    arena = arena_of()
    found = [alerts(arena, seed) for seed in range(6)]  # of 3 steps each
    assert [len(each) for each in found] == [1, 0, 0, 1, 0, 0]
    first, second = found[0][0], found[3][0]
    assert (first.alert_id, first.detector, first.level, first.subject) == (
        "rejected_steps-L1-32", "rejected_steps", "step", "L1",
    )  # fmt: skip
    assert (first.strength, first.since_event_id, first.event_ms) == (1.0, "e-0", 31)
    assert second.alert_id == "rejected_steps-L1-352"
    assert second.strength == 10.0
    assert arena.champion.rejected_steps == 18
    assert arena.challengers == []


def test_a_restart_does_not_tell_again() -> None:
    arena, other = arena_of(), arena_of(broken=False)
    assert len(alerts(arena, 1)) == 1
    other.load(*arena.state())
    assert [len(alerts(each, 2)) for each in (arena, other)] == [0, 0]
    assert [len(alerts(each, 3, 320)) for each in (arena, other)] == [1, 1]
    assert other.state() == arena.state()

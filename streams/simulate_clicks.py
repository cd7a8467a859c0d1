"""Impressions of recommended items: users and items have hidden tastes; true click probabilities are known.

An impression's log-odds are the sum of: how much the user's group likes the item's group (a matrix whose rows
and columns have mean 0, so that nobody does well without knowing both), a finer taste (a product of hidden
vectors), the item's popularity, the position on the page, the user's age band, the hour of the day, and a
constant that makes the click rate 10 %. A model sees the group of most users as `user_feature_0`; the items'
groups are hidden behind their ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.simulate import CONCEPT_KINDS, Change, Stream, concepts, under

SPAN_MS = 86_400_000
_BASE_RATE = 0.10
_GROUPS = 3  # of users, and as many of items
_POSITIONS = 5
_TELLING = 0.95  # share of users whose user_feature_0 tells their group
_PREFERENCE, _TASTE, _POPULARITY, _POSITION = 1.8, 0.2, 0.5, 0.3  # in log-odds
_NEW_ITEMS, _NEW_SHARE, _NEW_LIFT, _DEAD_DROP = 0.1, 0.25, 1.5, 3.0
# From an impression to its click; the task waits 10 minutes.
_SOONEST_MS, _MEAN_MS, _LATEST_MS = 2_000, 45_000, 540_000


@dataclass(frozen=True)
class _World:
    """Users [U] and items [I]; the last items are new: nobody sees them before a "pattern" change.

    preference float64 [concepts, groups, groups]: one matrix (user group by item group) for each concept.
    """

    user_group: NDArray[np.int64]
    user_taste: NDArray[np.float64]
    user_features: NDArray[np.int64]  # [U, 4]
    activity: NDArray[np.float64]
    item_group: NDArray[np.int64]
    item_taste: NDArray[np.float64]
    popularity: NDArray[np.float64]
    old_items: int
    preference: NDArray[np.float64]
    age_effect: NDArray[np.float64]


def generate(seed: int, events: int, changes: Sequence[Change], start_ms: int) -> Stream:
    """`events` impressions within 24 hours, and a label for each click, seconds to minutes later.

    Changes: each concept change has its own preferences, the first ones with the item groups permuted so that
    they conflict; "pattern" makes new items attractive and one old group dead; "unit" counts positions as 0,
    10, 20, ….
    """
    rng, change_rng = np.random.default_rng(seed).spawn(2)  # up to its first change a stream is as without it
    world = _make_world(rng, change_rng, events, sum(change.kind in CONCEPT_KINDS for change in changes))
    fraction = _arrivals(rng, events)
    user = rng.choice(len(world.activity), events, p=world.activity)
    fresh = under(changes, "pattern", fraction)
    item = _shown(rng, world, fresh)
    position = rng.integers(1, _POSITIONS + 1, events)
    odds = _log_odds(world, fraction, user, item, position, concepts(changes, fraction, change_rng), fresh)
    truth = 1 / (1 + np.exp(-odds))
    clicked = np.flatnonzero(rng.random(events) < truth)
    times_ms = start_ms + (fraction * SPAN_MS).astype(np.int64)
    wait = np.minimum(_SOONEST_MS + rng.exponential(_MEAN_MS, len(clicked)), _LATEST_MS).astype(np.int64)
    tens = under(changes, "unit", fraction)
    features = world.user_features[user]
    return Stream(
        id_field="event_id",
        id_prefix=f"imp-{seed}",
        time_field="timestamp",
        label_field="click",
        key="user_id",
        times_ms=times_ms,
        columns={
            "user_id": _names("u", len(world.activity))[user],
            "item_id": _names("i", len(world.item_group))[item],
            "position": np.where(tens, (position - 1) * 10, position),
            **{f"user_feature_{k}": _names("abcd"[k], 16)[features[:, k]] for k in range(4)},
        },
        labelled=clicked,
        known_ms=times_ms[clicked] + wait,
        labels=np.ones(len(clicked), np.int64),
        truth=truth,
        schedule_ms=SPAN_MS,
    )


def _make_world(
    rng: np.random.Generator, change_rng: np.random.Generator, events: int, changes: int
) -> _World:
    users = int(np.clip(events // 40, 50, 20_000))
    old_items = int(np.clip(events // 400, 12, 1_000))
    items = old_items + max(_GROUPS, int(old_items * _NEW_ITEMS))
    group = rng.integers(0, _GROUPS, users)
    features = np.stack([rng.integers(0, size, users) for size in (_GROUPS, 5, 4, 10)], axis=1)
    features[:, 0] = np.where(rng.random(users) < _TELLING, group, features[:, 0])
    activity = rng.lognormal(0, 1, users)
    preference = rng.normal(size=(_GROUPS, _GROUPS))
    preference -= preference.mean(axis=0)
    preference -= preference.mean(axis=1, keepdims=True)
    preference *= _PREFERENCE / preference.std()
    return _World(
        user_group=group,
        user_taste=rng.normal(size=(users, 4)) / 2,
        user_features=features,
        activity=activity / activity.sum(),
        item_group=rng.permutation(np.arange(items) % _GROUPS),
        item_taste=rng.normal(size=(items, 4)),
        popularity=rng.normal(0, _POPULARITY, items),
        old_items=old_items,
        preference=np.stack([preference, *(_conflicting(change_rng, preference) for _ in range(changes))]),
        age_effect=rng.normal(0, 0.3, 5),
    )


def _conflicting(rng: np.random.Generator, preference: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same matrix with its item groups permuted: of some permutations the one that correlates least with
    it.
    """
    tries = [preference[:, rng.permutation(_GROUPS)] for _ in range(60)]
    return min(tries, key=lambda permuted: float((permuted * preference).sum()))


def _arrivals(rng: np.random.Generator, events: int) -> NDArray[np.float64]:
    """Sorted times float64 [events] as fractions of the day: most at noon, half of them before it."""
    grid = np.linspace(0, 1, 1441)
    reached = grid - 0.5 * np.sin(2 * np.pi * grid) / (2 * np.pi)  # integral of 1 - cos(2πt) / 2
    return np.interp(np.sort(rng.random(events)), reached, grid)


def _shown(rng: np.random.Generator, world: _World, fresh: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Items int64 [n]: popular ones more often; once there are fresh ones, a quarter of the impressions are
    theirs.
    """
    weight = np.exp(world.popularity[: world.old_items])
    item: NDArray[np.int64] = rng.choice(world.old_items, len(fresh), p=weight / weight.sum())
    new = rng.integers(world.old_items, len(world.popularity), len(fresh))
    return np.where(fresh & (rng.random(len(fresh)) < _NEW_SHARE), new, item)


def _log_odds(
    world: _World,
    fraction: NDArray[np.float64],
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    position: NDArray[np.int64],
    concept: NDArray[np.int64],
    fresh: NDArray[np.bool_],
) -> NDArray[np.float64]:
    likes = world.preference[:, world.user_group[user], world.item_group[item]]
    rest = (
        _TASTE * (world.user_taste[user] * world.item_taste[item]).sum(axis=1)
        + world.popularity[item]
        - _POSITION * (position - 1)
        + world.age_effect[world.user_features[user, 1]]
        + 0.3 * np.sin(2 * np.pi * (fraction - 0.6))
    )
    constant = _constant(likes[0] + rest)
    new = item >= world.old_items
    dead = fresh & ~new & (world.item_group[item] == 0)
    odds: NDArray[np.float64] = (
        likes[concept, np.arange(len(user))] + rest + constant + _NEW_LIFT * new - _DEAD_DROP * dead
    )
    return odds


def _constant(odds: NDArray[np.float64]) -> float:
    """What to add to the log-odds so that the mean probability is the base rate: by halving an interval."""
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-(odds + middle)))).mean() < _BASE_RATE:
            low = middle
        else:
            high = middle
    return low


def _names(prefix: str, count: int) -> NDArray[np.object_]:
    return np.array([f"{prefix}{number}" for number in range(count)], object)

"""From a task file to rows: `distinct` over categories and entities' fields, decayed means and last values."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from streams.live import LiveModel
from streams.rows import Rows
from streams.serve import warm_up
from streams.stage import StagePartition, codes
from streams.task import Task
from streams.wire import encode_rows
from tests.stream_records import HIDDEN, MINUTE, NOW_MS, Record, event, sent, task

FEATURES = """
[[features]]
entity = "driver"
value = "city"
windows = ["8m"]
aggregates = ["distinct"]
[[features]]
entity = "driver"
value = "zone"
windows = ["8m"]
aggregates = ["distinct"]
[[features]]
entity = "zone"
value = "driver"
windows = ["8m"]
aggregates = ["distinct"]
[[features]]
entity = "zone"
value = "fare"
decay = ["1m"]
last = 2
"""
TASK = task(FEATURES)
RIDES = [("Anna", "Ulm", 4), ("Anna", "Bonn", 4), ("Anna", None, 5), ("Otto", "Ulm", 4), ("Anna", "Ulm", 4)]


def through_both_stages(made: Task, cuts: tuple[int, ...]) -> Rows:
    events = [
        event(trip=f"t-{i}", driver=driver, city=city, zone=zone, fare=float(i), at=NOW_MS + i * MINUTE)
        for i, (driver, city, zone) in enumerate(RIDES)
    ]
    log = [sent(e, offset=i, timestamp=e["at"]) for i, e in enumerate(events)]
    first, second = StagePartition(made, 0, HIDDEN), StagePartition(made, 1, HIDDEN)
    parts = [first.fold(log[a:b]).rows for a, b in pairwise([0, *cuts, len(log)])]
    return Rows.concat([second.fold([Record(encode_rows(part))]).rows for part in parts])


def test_both_stages_count_decay_and_keep() -> None:
    rows = through_both_stages(TASK, ())
    columns = {name: rows.numbers[:, i].tolist() for i, name in enumerate(TASK.numbers)}
    assert columns["driver_city_distinct_8m"] == [0, 1, 2, 0, 2]  # the missing one is none
    assert columns["driver_zone_distinct_8m"] == [0, 1, 1, 0, 2]
    assert columns["zone_driver_distinct_8m"] == [0, 1, 0, 1, 2]
    assert columns["zone_fare_last_1"][3:] == [1.0, 3.0]
    assert columns["zone_fare_last_2"][3:] == [0.0, 1.0]
    weights = [2.0**-3, 2.0**-2, 1.0]
    mean = (0 * weights[0] + 1 * weights[1] + 3 * weights[2]) / sum(weights)
    assert columns["zone_fare_decayed_1m"][4] == pytest.approx(mean, rel=1e-6)


def test_the_last_categories_are_codes_among_the_ids_and_not_numbers() -> None:
    made = task(FEATURES + '[[features]]\nentity = "zone"\nvalue = "city"\nlast = 3\n')
    assert made.numbers == TASK.numbers
    assert [(b.name, b.kind, b.length, b.entity) for b in made.blocks] == [
        ("zone_fare", "series", 2, "zone"), ("zone_city", "codes", 3, "zone"),
    ]  # fmt: skip
    for cuts in ((), (1, 3)):
        rows = through_both_stages(made, cuts)
        ids = rows.categories[:, made.schema.columns("zone_city")].tolist()
        ulm, bonn = (int(codes(np.array([HIDDEN.one("city", name)]))[0]) for name in ("Ulm", "Bonn"))
        # Zone 4 sees Ulm, Bonn, Ulm, Ulm; zone 5 one ride without a city.
        assert ids == [[0, 0, 0], [ulm, 0, 0], [0, 0, 0], [bonn, ulm, 0], [ulm, bonn, ulm]]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_a_code_is_a_whole_number_that_float32_holds_and_0_has_none(pseudonyms: list[int]) -> None:
    found = codes(np.array([*pseudonyms, 0], np.int64))
    assert np.isnan(found[-1])
    known = found[:-1][np.array(pseudonyms, np.int64) != 0]
    np.testing.assert_array_equal(known.astype(np.float32).astype(np.int64), known)
    assert ((known >= 1) & (known <= 2**24)).all()


def test_batches_do_not_matter() -> None:
    one, other = through_both_stages(TASK, ()), through_both_stages(TASK, (1, 2, 4))
    assert one.numbers.tobytes() == other.numbers.tobytes()


def test_a_worker_warms_up_with_categories() -> None:
    live: Any = SimpleNamespace(load=lambda: None, score=lambda numbers, categories: None)
    warm_up(TASK, cast(LiveModel, live))


def test_another_half_life_is_another_schema() -> None:
    for old, new in [('decay = ["1m"]', 'decay = ["2m"]'), ("last = 2", "last = 3"), ('"city"', '"zones"')]:
        changed = task(FEATURES.replace(old, new)) if new != '"zones"' else task()
        assert changed.schema_hash != TASK.schema_hash


@pytest.mark.parametrize(
    ("old", "new", "message", "fix"),
    [
        ('value = "city"', 'value = "citty"', "'citty' is not a number field", 'did you mean "city"?'),
        (
            'value = "city"\nwindows = ["8m"]\naggregates = ["distinct"]',
            'value = "city"\nwindows = ["8m"]\naggregates = ["mean"]',
            '"mean" needs a number field, and city is a category',
            "of a category use distinct",
        ),
        ('value = "fare"\ndecay = ["1m"]\n', "", "last needs a number field or a category", "add value"),
        ("last = 2", "last = 99", "last must be a whole number from 1 to 32", "last = 5"),
        ('decay = ["1m"]', 'decay = ["soon"]', "'soon' is not a duration", '"30s"'),
    ],
)
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, message: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        task(FEATURES.replace(old, new))
    assert message in caught.value.message
    assert caught.value.message.startswith("trips.toml:")
    assert fix in caught.value.fix


def test_a_category_that_no_row_has_cannot_be_counted() -> None:
    hidden = '{ type = "category", required = false, model = false }'
    with pytest.raises(UserError, match="'city' is not a number field"):
        task(FEATURES, city=hidden)

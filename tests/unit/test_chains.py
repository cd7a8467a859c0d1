"""What followed from what, on a history in which a name was given twice."""

from typing import Any

from streams.report.chains import causes, followers
from streams.report.data import Entry

ROWS: list[dict[str, Any]] = [
    {"alert_id": "a-1"},
    {"action": "start", "lineage": "L2", "champion": "L1", "evidence": {"alert_id": "a-1"}},
    {"action": "start", "lineage": "L3", "champion": "L1", "evidence": {"alert_id": "a-1"}},
    {"action": "promote", "lineage": "L2", "champion": "L1", "evidence": {"alert_id": "a-1"}},
    {"action": "retire", "lineage": "L3", "champion": "L1", "evidence": {"alert_id": "a-1"}},
    {"action": "refuse", "lineage": "L2", "champion": "L2", "evidence": {"worker": "w"}},
    {"action": "rollback", "lineage": "L1", "champion": "L2", "evidence": {}},
    {"alert_id": "a-2"},
    {"action": "start", "lineage": "L3", "champion": "L1", "evidence": {"alert_id": "a-2"}},
    {"action": "reject", "lineage": "L3", "champion": "L1", "evidence": {"alert_id": "a-2"}},
    {"action": "decline", "lineage": "L9", "champion": "L1", "evidence": {"command_id": "c"}},
]
ENTRIES = [Entry(number, number, row) for number, row in enumerate(ROWS, 1)]


def test_each_decision_follows_the_newest_of_its_name():
    assert causes(ENTRIES) == {2: 1, 3: 1, 4: 2, 5: 3, 6: 4, 7: 4, 9: 8, 10: 9}


def test_an_alarm_knows_all_that_came_of_it_and_nothing_else():
    caused = causes(ENTRIES)
    assert list(followers(1, caused)) == [2, 3, 4, 5, 6, 7]
    assert list(followers(8, caused)) == [9, 10]
    assert list(followers(10, caused)) == []

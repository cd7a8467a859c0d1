"""Topics: their names, those that a task file gives, and how each is made."""

import re

import pytest

from infra.errors import UserError
from streams.task import load_task
from streams.topics import MAX_RECORD_BYTES, Topics
from tests.stream_records import TRIPS, task

LINE = len((TRIPS + "x").splitlines()) + 1  # of the first key of an added table


def test_every_topic_has_a_name_of_its_own() -> None:
    topics = Topics.of(task())
    assert (topics.events, topics.labels, topics.predictions) == (
        "trips.events",
        "trips.labels",
        "trips.predictions",
    )
    assert (topics.drift_alerts, topics.dead_letters) == ("trips.drift-alerts", "trips.dead-letters")
    assert [topics.stage(0), topics.stage(1)] == ["trips.events", "trips.by-zone"]
    assert topics.feedback_entities == ("driver",)
    layout = topics.layout(4)
    assert set(layout) == {
        *topics.internal, topics.events, topics.labels, topics.predictions, topics.drift_alerts, topics.dead_letters,
    }  # fmt: skip
    assert len(layout) == 15


def test_a_task_file_can_name_its_topics() -> None:
    names = 'events = "web.Orders_v2"\nlabels = "crm-outcomes"\npredictions = "scores"\n'
    made = task("[topics]\n" + names + 'drift_alerts = "ops.drift"\ndead_letters = "ops.dlq"\n')
    topics = Topics.of(made)
    assert (topics.events, topics.labels, topics.predictions) == ("web.Orders_v2", "crm-outcomes", "scores")
    assert (topics.drift_alerts, topics.dead_letters) == ("ops.drift", "ops.dlq")
    assert topics.stage(0) == "web.Orders_v2"
    assert topics.internal == Topics.of(task()).internal
    assert {"web.Orders_v2", "crm-outcomes", "scores", "ops.drift", "ops.dlq"} < set(topics.layout(2))
    assert made.schema_hash == task().schema_hash  # the same model serves it
    assert Topics.of(task('[topics]\nlabels = "x"\n')).events == "trips.events"


def test_rows_between_partitions_need_equal_counts_and_the_others_do_not() -> None:
    for name in ("clicks", "transactions"):
        topics = Topics.of(load_task(name))
        layout = topics.layout(8)
        wide = {topic for topic, (partitions, _) in layout.items() if partitions == 8}
        assert wide >= {topics.events, topics.examples, topics.labelled, topics.stage(1)}
        assert topics.may_be_wider <= set(layout)
        assert not topics.may_be_wider & {*topics.internal, topics.events}
        assert all(layout[topic][1]["max.message.bytes"] == str(MAX_RECORD_BYTES) for topic in wide)


RULE = "1 to 249 of a-z, A-Z, 0-9, dot, underscore and minus"
TAKEN = "give each its own topic; one that is left out gets a name of its own"


@pytest.mark.parametrize(
    ("lines", "line", "message", "fix"),
    [
        ('events = "my a"', 0, f'topics.events must be {RULE}, not "my a"', 'for example events = "my-events"'),
        (f'labels = "{"x" * 250}"', 0, f"topics.labels must be {RULE}", 'for example labels = "my-labels"'),
        ('events = ""', 0, 'topics.events must be text, not ""', 'for example events = "my-events"'),
        ("events = 7", 0, "topics.events must be text, not 7", 'for example events = "my-events"'),
        ('events = ".."', 0, 'topics.events is "..", which Kafka refuses', "give the name of a topic"),
        ('events = "a\\nb"', 0, f"topics.events must be {RULE}", 'for example events = "my-events"'),
        (
            'event = "a"', 0, "unknown key topics.event",
            'did you mean "events"? keys here are events, labels, predictions, drift_alerts, dead_letters',
        ),
        ('events = "a"\npredictions = "a"', 1, 'topics.predictions is "a", which is topics.events already', TAKEN),
        ('labels = "trips.events"', 0, 'topics.labels is "trips.events", which is topics.events already', TAKEN),
        ('events = "trips.labels"', 0, 'topics.events is "trips.labels", which is topics.labels already', TAKEN),
        ('events = "trips.by-zone"', 0, "topics.events is \"trips.by-zone\", which is Driftline's own already", TAKEN),
        ('labels = "trips.feedback-driver"', 0, "topics.labels is", TAKEN),
        ('dead_letters = "trips.examples"', 0, "topics.dead_letters is", TAKEN),
    ],
)  # fmt: skip
def test_a_wrong_name_is_an_error_with_its_line(lines: str, line: int, message: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        task(f"[topics]\n{lines}\n")
    said, _, advice = str(caught.value).partition("\n  fix: ")
    assert re.match(rf"trips\.toml:{LINE + line}: {re.escape(message)}", said)
    assert advice == fix


def test_a_model_of_features_needs_no_table_of_topics() -> None:
    assert Topics.of(task("[topics]\n")) == Topics.of(task())

"""What is kept of one event: its prediction, its label, and where its labelled rows stand.

The archive is asked first. An embedded one belongs to the archive role while that runs; then, and for what the archive
does not have, the topics are read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition

from infra.clickhouse import Archive, literal, open_archive
from infra.errors import UserError
from infra.kafka import Record, end_offsets, make_consumer, polls, translated
from infra.settings import Settings
from streams.predictions import score_of
from streams.task import Task
from streams.topics import Topics
from streams.wire import Damaged, decode_labelled, partition_of_id

Row = dict[str, Any]
_PREDICTION = ("score", "version", "event_ms", "processed_ms", "late", "source_partition", "source_offset")
_LABEL = ("label", "known_ms", "served", "source")
_APART_MS = 60_000  # that clocks of machines may differ


@dataclass(frozen=True)
class Event:
    """`rows` are the places (partition, offset, row) of its labelled rows, two where a late label corrects a first one.

    `prediction` and `label` are as in the JSON of `driftline lineage`; `oldest` is what labelled still has.
    """

    prediction: Row | None
    label: Row | None
    rows: list[tuple[int, int, int]]
    oldest: dict[int, int]


def find_event(task: Task, settings: Settings, event_id: str) -> Event:
    """Everything about an event. Raises UserError when Kafka is away."""
    prediction = label = None
    try:
        archive = open_archive(settings.archive)
    except UserError:  # the archive role has it
        pass
    else:
        try:
            prediction, label = _archived(archive, task.name, event_id)
        finally:
            archive.close()
    topics = Topics.of(task)
    if prediction is None:
        prediction = _predicted(settings.kafka, topics.predictions, event_id)
    since_ms = max(0, prediction["processed_at"] - _APART_MS) if prediction else 0
    partition = partition_of_id(event_id, settings.partitions)
    rows, oldest, newest = _labelled(settings.kafka, topics.labelled, partition, event_id, since_ms)
    return Event(prediction, newest or label, rows, oldest)


def _archived(archive: Archive, task: str, event_id: str) -> tuple[Row | None, Row | None]:
    """Prediction and label as the archive has them."""

    def newest(table: str, columns: tuple[str, ...]) -> tuple[Any, ...] | None:
        sql = (
            f"SELECT {', '.join(columns)} FROM {table} FINAL"
            f" WHERE task = {literal(task)} AND event_id = {literal(event_id)} LIMIT 1"
        )
        try:
            return next(iter(archive.query(sql)), None)
        except UserError:  # no tables yet
            return None

    found, said = newest("predictions", _PREDICTION), newest("labels", _LABEL)
    prediction = label = None
    if found:
        score, version, event_ms, processed_ms, late, partition, offset = found
        prediction = _prediction(score, version, event_ms, processed_ms, bool(late), partition, offset)
    if said:
        value, known_ms, served, source = said
        label = _label(value, known_ms, served, source)
    return prediction, label


def _prediction(
    score: float, version: str, event_ms: int, processed_ms: int, late: bool, partition: int, offset: int
) -> Row:
    source = {"partition": partition, "offset": offset}
    times = {"event_time": event_ms, "processed_at": processed_ms}
    return {"score": score, "version": version, **times, "late": late, "source": source}


def _label(value: float, known_ms: int, served: float, source: str) -> Row:
    return {
        "label": value,
        "known_at": known_ms,
        "served": None if served != served else served,
        "source": source,
    }


def _predicted(kafka: str, topic: str, event_id: str) -> Row | None:
    """The prediction as the topic has it: the records' keys are the events' ids."""
    key = event_id.encode()
    for record in _records(kafka, topic, None, 0):
        if record.key == key:
            p = json.loads(record.value or b"{}")
            place = p["source"]["partition"], p["source"]["offset"]
            return _prediction(
                score_of(p), p["version"], p["event_time"], p["processed_at"], p["late"], *place
            )
    return None


def _labelled(
    kafka: str, topic: str, partition: int, event_id: str, since_ms: int
) -> tuple[list[tuple[int, int, int]], dict[int, int], Row | None]:
    """Where the event's labelled rows are, the oldest offsets, and the label of the last of these rows."""
    from streams.labelled import KafkaLog

    source = KafkaLog(kafka, topic, len(end_offsets(kafka, topic)))
    try:
        oldest = source.oldest()
    finally:
        source.close()
    rows, label = [], None
    for record in _records(kafka, topic, partition, since_ms):
        try:
            labelled = decode_labelled(record.value)
        except Damaged:
            continue
        for row, found in enumerate(labelled.rows.ids):
            if found == event_id:
                rows.append((partition, record.offset, row))
                source_of = "default" if labelled.default[row] else "label"
                label = _label(
                    float(labelled.label[row]),
                    int(labelled.known_ms[row]),
                    float(labelled.told[row]),
                    source_of,
                )
    return rows, oldest, label


def _records(kafka: str, topic: str, partition: int | None, since_ms: int) -> Iterator[Record]:
    """The committed records of a topic, or of one partition, that were written at `since_ms` or later."""
    with translated(kafka):
        ends = {p: end for p, end in end_offsets(kafka, topic).items() if partition in (None, p)}
        consumer = make_consumer(kafka)
        try:
            places = {p: TopicPartition(topic, p) for p in ends}
            consumer.assign(list(places.values()))
            consumer.seek_to_beginning(*places.values())
            if since_ms:
                first = consumer.offsets_for_times(dict.fromkeys(places.values(), since_ms))
                for place, at in first.items():
                    if at is not None:
                        consumer.seek(place, at.offset)
            for found in polls(consumer, {place: ends[p] for p, place in places.items()}):
                for records in found.values():
                    yield from records
        finally:
            consumer.close()

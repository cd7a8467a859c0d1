"""What reaches the learner beside labelled rows: reports of the workers, and commands of people.

A command travels by a topic, so the learner stays the only one that changes which model is live. Commands are done in
their order, each once: how far they were done is part of a checkpoint, and the ledger has what was done since.
"""

import logging
from collections.abc import Iterator
from typing import Literal

import msgspec
from kafka import TopicPartition

from infra.kafka import end_offsets, make_consumer
from streams.fleet import Report
from streams.topics import Topics

log = logging.getLogger(__name__)


class Command(msgspec.Struct, frozen=True):
    """What a person asks for: promote challenger `target`, or roll back to `target` ("": what was live before).

    `live` is the lineage that the person saw live: a command that comes too late, or twice, does nothing.
    """

    command_id: str
    action: Literal["promote", "rollback"]
    target: str
    live: str
    reason: str
    created_at: int


class Control:
    """Reads both topics. `position` is the offset of the first command that is not done: part of a checkpoint."""

    def __init__(self, kafka: str, topics: Topics) -> None:
        self._kafka = kafka
        self._workers = TopicPartition(topics.workers, 0)
        self._commands = TopicPartition(topics.commands, 0)
        self._consumer = make_consumer(kafka)
        self.position: int | None = None

    def start(self) -> None:
        """Begin at `position`, a learner without one with what comes from now on; older reports are of no interest."""
        if self.position is None:
            self.position = end_offsets(self._kafka, self._commands.topic)[0]
        self._consumer.assign([self._workers, self._commands])
        self._consumer.seek_to_end(self._workers)
        self._consumer.seek(self._commands, self.position)

    def poll(self) -> Iterator[Report | Command]:
        """What is there now, without waiting. A command counts as done when the next thing is asked for."""
        found = self._consumer.poll(timeout_ms=0)
        for record in found.get(self._workers, []):
            try:
                yield msgspec.json.decode(record.value or b"", type=Report)
            except msgspec.DecodeError as error:
                log.error("a report at offset %d is not readable: %s", record.offset, error)
        for record in found.get(self._commands, []):
            self.position = record.offset + 1
            try:
                yield msgspec.json.decode(record.value or b"", type=Command)
            except msgspec.DecodeError as error:
                log.error("the command at offset %d is not readable: %s", record.offset, error)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

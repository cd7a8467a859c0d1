"""Dead letters: the record exactly as it came, with the place it stood and the reason in its headers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from infra.metrics import Metrics
from streams.events import Broken
from streams.topics import MAX_RECORD_BYTES
from streams.transaction import Outputs

LONGEST_VALUE = 15 << 20
"""Bytes of a value that are kept: with its headers the letter must not be larger than Kafka takes.

A compressed record can hold far more than Kafka's limit for a record says; it is cut, never lost."""

LONGEST_KEY = MAX_RECORD_BYTES - LONGEST_VALUE - (64 << 10)
"""Bytes of a key that are kept, for the same reason; the rest of the limit is for the headers."""


def add_dead_letters(
    outputs: Outputs, topic: str, partitions: int, task: str, broken: Sequence[Broken]
) -> None:
    """One record for each broken one: same key, same bytes; headers as docs/schemas.md says."""
    ours = task.encode()
    for letter in broken:
        record = letter.record
        headers = [
            ("driftline.task", ours),
            ("driftline.reason", letter.reason.encode()),
            ("driftline.detail", letter.detail.encode(errors="replace")),
            ("driftline.topic", record.topic.encode()),
            ("driftline.partition", b"%d" % record.partition),
            ("driftline.offset", b"%d" % record.offset),
            ("driftline.timestamp", b"%d" % record.timestamp),
        ]
        key, value = _kept(record)
        if key is not record.key or (value is not record.value and value):
            headers.append(("driftline.cut", b"%d %d" % (len(record.key or b""), len(record.value or b""))))
        outputs.add(topic, record.partition % partitions, value, key=key, headers=headers)


def count_dead_letters(metrics: Metrics, broken: Sequence[Broken]) -> None:
    """Add them to the metrics, by reason."""
    for reason, number in Counter(letter.reason for letter in broken).items():
        metrics.count("dead_letters_total", number, of=reason)


def _kept(record: Any) -> tuple[bytes | None, bytes | None]:
    """Key and value of the letter. Kafka has no record without both: an empty value keeps the place of a null one."""
    key = record.key if record.key is None else record.key[:LONGEST_KEY]
    value = record.value if record.value is None else record.value[:LONGEST_VALUE]
    return key, b"" if key is None and value is None else value

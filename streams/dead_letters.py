"""Dead letters: the record exactly as it came, with the place it stood and the reason in its headers."""

from collections.abc import Sequence

from streams.events import Broken
from streams.transaction import Outputs


def add_dead_letters(
    outputs: Outputs, topic: str, partitions: int, task: str, broken: Sequence[Broken]
) -> None:
    """One record for each broken one: same key, same bytes; headers as docs/schemas.md says."""
    for letter in broken:
        record = letter.record
        headers = {
            "driftline.task": task,
            "driftline.reason": letter.reason,
            "driftline.detail": letter.detail,
            "driftline.topic": record.topic,
            "driftline.partition": str(record.partition),
            "driftline.offset": str(record.offset),
            "driftline.timestamp": str(record.timestamp),
        }
        pairs = [(name, text.encode(errors="replace")) for name, text in headers.items()]
        # Kafka has no record without key and value: an empty value keeps the place of a null one.
        value = record.value if record.value is not None or record.key is not None else b""
        outputs.add(topic, record.partition % partitions, value, key=record.key, headers=pairs)

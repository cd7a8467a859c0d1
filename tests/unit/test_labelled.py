"""Reading labelled rows: a partition that hangs does not hold up the others for ever."""

import time
from collections.abc import Collection, Sequence

from infra.kafka import Record
from infra.metrics import Metrics
from learners.cuts import Step
from streams.labelled import PATIENCE_MS, LabelledReader, ListLog
from tests import learner_log as logs

TASK = logs.small_task()


class HangingLog(ListLog):
    """Partition 1 has a record that does not come, as in the middle of a transaction."""

    def poll(self, timeout_ms: int, skip: Collection[int]) -> Sequence[Record]:
        found = super().poll(timeout_ms, skip)
        if not found:
            time.sleep(timeout_ms / 1000)
        return found

    def behind(self) -> dict[int, int]:
        return super().behind() | {1: 1}


def test_a_partition_that_hangs_is_awaited_for_a_while() -> None:
    log = logs.records(TASK, logs.labelled(TASK, 300))
    reader = LabelledReader(HangingLog({0: log[0], 1: []}), 64, TASK.rows_hash, Metrics())
    reader.start({0: (0, 0), 1: (0, 0)})
    rounds: list[list[Step]] = []
    while not rounds or not rounds[-1]:
        rounds.append(reader.steps(99))
    assert len(rounds) > PATIENCE_MS / 100 - 1  # it did wait
    learned = sum(len(step.batch) for step in rounds[-1])
    assert learned == sum(len(logs.decode_labelled(record.value)) for record in log[0])

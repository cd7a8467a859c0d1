"""What one pass over a serve worker's partitions writes: rows for the next stages, predictions, examples.

It is written for the pass as a whole: one record for a partition of the next topic holds rows of all partitions that
they come from, and all rows of the last stage are scored at once. What a small batch costs is mostly the number of
records and calls.
"""

from collections import defaultdict
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from infra.clock import now_ms
from streams import wire
from streams.canary import ARMS, Answer
from streams.exploration import marks
from streams.live import LiveModel
from streams.predictions import Source, recorder
from streams.task import Task
from streams.topics import Topics
from streams.transaction import Headers, Outputs


class Emitter:
    """Writes what follows from the rows that a pass folded."""

    def __init__(self, task: Task, topics: Topics, partitions: int, live: LiveModel) -> None:
        self._task, self._topics, self._partitions, self._live = task, topics, partitions, live
        self._last = len(task.entities) - 1
        self._encoder, self._record = (
            msgspec.json.Encoder(),
            recorder(task.schema.target, task.exploration.classes),
        )

    def write(self, outputs: Outputs, index: int, rows: wire.Rows, sources: NDArray[np.int64]) -> None:
        """Rows [n] of stage `index` from the partitions `sources` [n]: to the next stage, or scored."""
        if not len(rows):
            return
        if index < self._last:
            self._pass_on(outputs, index, rows)
        else:
            self._predict(outputs, rows, sources)

    def tell(self, outputs: Outputs, index: int, rows: wire.Rows, headers: Headers) -> None:
        """Rows to the next stage at once, and `headers` to each of its partitions: on the last record for it, so that
        all rows have come before.
        """
        written: dict[int, list[bytes]] = defaultdict(list)
        for target, value in wire.split_rows(rows, self._targets(index, rows)):
            written[target].append(value)
        nothing = wire.encode_rows(wire.Rows.empty(self._task))
        for target in range(self._partitions):
            *whole, last = written.get(target) or [nothing]
            for value in whole:
                outputs.add(self._topics.stage(index + 1), target, value)
            outputs.add(self._topics.stage(index + 1), target, last, headers=headers)

    def _pass_on(self, outputs: Outputs, index: int, rows: wire.Rows) -> None:
        """Rows to the next stage, each to the partition of its next entity."""
        for target, value in wire.split_rows(rows, self._targets(index, rows)):
            outputs.add(self._topics.stage(index + 1), target, value)

    def _targets(self, index: int, rows: wire.Rows) -> NDArray[np.int64]:
        return wire.partition_of(rows.keys[:, index + 1], self._partitions)

    def _predict(self, outputs: Outputs, rows: wire.Rows, sources: NDArray[np.int64]) -> None:
        """Score rows [n]; a prediction goes to the partition that its row came from [n]."""
        answer = self._live.serve(rows.keys[:, 0], rows.numbers, rows.categories)
        task = self._task
        found = marks(task.exploration, rows.ids, answer.scores, task.classes)
        rows = replace(rows, arm=answer.arm, **vars(found))
        self._write_predictions(outputs, rows, sources, answer)
        self._write_examples(outputs, rows, answer)

    def _write_predictions(
        self,
        outputs: Outputs,
        rows: wire.Rows,
        sources: NDArray[np.int64],
        answer: Answer,
    ) -> None:
        topic, task, processed, encode = (
            self._topics.predictions,
            self._task.name,
            now_ms(),
            self._encoder.encode,
        )
        columns = zip(
            sources.tolist(),
            rows.ids,
            answer.scores.tolist(),
            answer.versions,
            rows.event_ms.tolist(),
            rows.received_ms.tolist(),
            rows.late.tolist(),
            (rows.arm > 0).tolist(),
            rows.explored.tolist(),
            rows.propensity.astype(np.float64).round(6).tolist(),
            rows.partition.tolist(),
            rows.offset.tolist(),
            strict=True,
        )
        for source, event_id, score, version, event, received, late, arm, drawn, chance, part, at in columns:
            row = self._record(
                event_id, task, score, version, event, received, processed, late, ARMS[arm], drawn, chance,
                Source(part, at),
            )  # fmt: skip
            outputs.add(topic, source, encode(row), key=event_id.encode())

    def _write_examples(self, outputs: Outputs, rows: wire.Rows, answer: Answer) -> None:
        targets = np.array([wire.partition_of_id(i, self._partitions) for i in rows.ids], np.int64)
        for target, value in wire.split_examples(rows, answer.scores, answer.versions, targets):
            outputs.add(self._topics.examples, target, value, headers=[(wire.KIND, wire.EXAMPLES)])

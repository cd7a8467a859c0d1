"""Learning fast after a drift: a lineage rehearses what came since the onset, beside what comes now.

After a drift there are few examples of what holds now, and one pass over them at a rate meant for a long stream learns
little of it. So a challenger takes, beside each new batch, some batches drawn at random from those since the onset
(experience replay: Lin 1992; for streams: Chaudhry et al. 2019, "On tiny episodic memories in continual learning").
It stops after a number of examples, when the stream itself has enough of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from learners.buffer import Buffer
from learners.trainer import Trainer

LENGTH = 4_000  # examples of the stream beside which a lineage rehearses ...
EXTRA = 3  # ... so many batches for each batch of the stream


class Studies:
    """Which lineages rehearse, what happened since when, and beside how many more examples.

    Draws depend on these numbers and the buffer only: from the same state they are the same.
    """

    def __init__(self) -> None:
        self._since: dict[str, int] = {}  # by lineage, ms
        self._left: dict[str, int] = {}

    def begin(self, lineages: Sequence[str], since_ms: int) -> None:
        """These, and no others any more, will rehearse what happened since `since_ms`."""
        self._since = dict.fromkeys(lineages, since_ms)
        self._left = dict.fromkeys(lineages, LENGTH)

    def studying(self, lineage: str) -> bool:
        """Whether the lineage rehearses."""
        return lineage in self._since

    def rehearse(self, trainer: Trainer, buffer: Buffer, learned: int) -> None:
        """The lineage has learned a new batch of `learned` examples; let it rehearse, if it should."""
        name, since_ms = trainer.lineage, self._since.get(trainer.lineage)
        if since_ms is None:
            return
        random = np.random.default_rng((int(name[1:]), self._left[name]))
        known = [batch for batch in buffer if batch.event_ms[-1] >= since_ms]
        for drawn in random.integers(0, len(known), EXTRA) if known else ():
            batch = known[drawn]
            recent = batch.event_ms >= since_ms
            trainer.train(batch if recent.all() else batch.take(recent))
        self._left[name] -= learned
        if self._left[name] <= 0:
            del self._since[name], self._left[name]

    def record(self) -> dict[str, list[int]]:
        """All of it, ready for JSON."""
        return {name: [since_ms, self._left[name]] for name, since_ms in self._since.items()}

    def load(self, record: Mapping[str, Sequence[int]]) -> None:
        """The inverse of `record`."""
        self._since = {name: since_ms for name, (since_ms, _) in record.items()}
        self._left = {name: left for name, (_, left) in record.items()}

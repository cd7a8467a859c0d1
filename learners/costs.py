"""What a challenger costs to score, against the champion: known from the beginning of its trial.

Wall-clock time: whoever asks writes down what follows from it before it is done (`learners.entries.Steered`), so that
learning stays a function of what is written down.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from learners.admission import scoring_ms
from learners.batch import Schema
from learners.challenger import Challenger
from learners.models import EventModel, build_model
from learners.rollback import GOLDEN_ROWS
from learners.trainer import Trainer


def as_served(trainer: Trainer) -> EventModel:
    """A model that costs a worker what this one does: one that is spread over ranks has its table whole there."""
    if not trainer.config.spread_table:
        return trainer.model
    return build_model(trainer.schema, trainer.config, trainer.seed, trainer.device)


class Costs:
    """Times each lineage on trial once; it may take `limit` times as long as the champion. `clock` gives seconds."""

    def __init__(self, schema: Schema, limit: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._schema, self._limit, self._clock = schema, limit, clock
        self._timed: set[str] = set()

    def due(self, challengers: Sequence[Challenger]) -> bool:
        """Whether one of them was not timed yet."""
        return any(challenger.lineage not in self._timed for challenger in challengers)

    def excessive(
        self, champion: Trainer, challengers: Sequence[Challenger]
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Lineage, reason and evidence of those that take too long, each once."""
        for challenger in [each for each in challengers if each.lineage not in self._timed]:
            self._timed.add(challenger.lineage)
            models = as_served(challenger.trainer), as_served(champion)
            own, its = scoring_ms(self._schema, self._clock, *models)
            if own > self._limit * its:
                longer = f"{own:.2f} ms for {GOLDEN_ROWS} rows against {its:.2f} ms of {champion.lineage}"
                why = (
                    f"it takes too long to score: {longer}, at most {self._limit:g} times as long is allowed"
                )
                yield challenger.lineage, why, {"scoring_ms": own, "champion_scoring_ms": its}

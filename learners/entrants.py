"""Who challenges the champion after an alarm: a copy of it, a new model, and one that was good before.

What drifts away may come back. So the champion as it was when an alarm came is kept, and after the next alarm the kept
one that does best on what came since the onset is tried, if it does better there than the champion (a pool of earlier
models, as in Yang et al. 2006, "Mining in anticipation for concept change"). To be chosen on these examples is no
advantage in the test, which is on later ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from learners.batch import Batch, ModelConfig, Schema
from learners.buffer import Buffer
from learners.challenger import other_settings
from learners.judge import Judge
from learners.packing import part, prefixed
from learners.trainer import Trainer

FIRST = "L1"
MOST = 3  # challengers after one alarm, of a task with one `[challenger]`: they share alpha
KEPT = 3  # earlier champions


class Entrants:
    """Makes challengers, and remembers the settings and the seed of every lineage that was ever born.

    `standing` and `challenging` are the settings of the first champion and of its challengers; `others` are those of
    further challengers, of each of which a new model is tried.
    """

    def __init__(
        self,
        schema: Schema,
        standing: ModelConfig,
        challenging: ModelConfig,
        seed: int,
        device: str,
        others: Sequence[ModelConfig] = (),
    ) -> None:
        self._schema, self._settings, self._seed, self._device = schema, (standing, challenging), seed, device
        self._others = others
        self._judge = Judge(schema.target, standing)
        self.configs = {FIRST: standing}
        self.seeds = {FIRST: seed}  # what the first weights of a lineage were drawn from
        self._past: list[Trainer] = []  # champions as they were at an alarm, oldest first

    def born(self, config: ModelConfig, seed: int) -> str:
        """The name of the next lineage, whose settings and seed are kept from now on."""
        name = f"L{len(self.configs) + 1}"
        self.configs[name], self.seeds[name] = config, seed
        return name

    def make(self, champion: Trainer, buffer: Buffer, since_ms: int) -> Iterator[tuple[str, Trainer]]:
        """Kind and model of each challenger, which has yet to learn what came since the onset of the drift."""
        past = self._recalled(champion, buffer, since_ms)
        self._past = [*self._past, champion.clone(champion.lineage)][-KEPT:]
        # A copy that learns exactly as its original cannot be better, so it has the settings that the other does not.
        config = other_settings(champion.config, *self._settings)
        yield "warm", champion.clone(self.born(config, champion.seed), config)
        for config in (self._settings[1], *self._others):
            seed = self._seed + len(self.configs)
            yield "fresh", Trainer(self._schema, config, seed, self.born(config, seed), self._device)
        if past is not None:
            yield "past", past.clone(self.born(past.config, past.seed))

    def bar(self, lineage: str) -> None:
        """Forget it as an earlier champion: it was rolled back."""
        self._past = [model for model in self._past if model.lineage != lineage]

    def _recalled(self, champion: Trainer, buffer: Buffer, since_ms: int) -> Trainer | None:
        """The kept model that does best on what came since the onset, if it does better than the champion."""
        recent = [batch.take(batch.event_ms >= since_ms) for batch in buffer]
        recent = [batch for batch in recent if len(batch)]
        if not recent or not self._past:
            return None
        seen = Batch.concat(recent)

        def loss(model: Trainer) -> float:
            return float(np.mean(self._judge.raw(seen.label, model.score(seen.numbers, seen.categories))))

        best = min(self._past, key=loss)
        return best if loss(best) < loss(champion) else None

    def state(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Files, and a record ready for JSON; `load` is the inverse."""
        files = [prefixed(f"past/{i}", model.state()) for i, model in enumerate(self._past)]
        return {name: data for each in files for name, data in each.items()}, {
            "configs": {lineage: config.to_dict() for lineage, config in self.configs.items()},
            "seeds": dict(self.seeds),
            "past": len(self._past),
        }

    def load(self, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
        """The inverse of `state`. Raises ValueError if the state belongs to another schema, with this unchanged."""
        past = []
        for i in range(record["past"]):
            past.append(Trainer(self._schema, self._settings[0], self._seed, FIRST, self._device))
            past[-1].load(part(f"past/{i}", files))
        self._past = past
        self.configs = {name: ModelConfig.from_dict(config) for name, config in record["configs"].items()}
        self.seeds = dict(record["seeds"])

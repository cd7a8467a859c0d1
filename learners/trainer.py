"""One lineage that learns: a model, the way in which it learns, and the numbers that name its versions.

A chain of events in reading order: `train` (micro-batches, each a step that is accepted or rejected whole),
then `delta` or `full` (what changed, for the serving side), and `state` / `load` (everything, for a
checkpoint). There is no randomness after construction: the same batches in the same order give bit-equal
weights on the same machine, device and number of torch threads.
"""

import json
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from learners import weights
from learners.batch import GRADIENT_FAMILIES, Batch, ModelConfig, Schema
from learners.consolidation import Consolidation
from learners.lesson import GradientLesson, Learned, lesson_of
from learners.models import Counter, build_model
from learners.models.base import tensor
from learners.parallel import cuts, ranks
from learners.renewal import Renewal
from learners.replay import Replay
from learners.spread import spread
from learners.weights import Update

EVERY_STATISTIC = ("mean", "var", "count", "seen", "label_mean", "label_var")  # that every family keeps
_COUNTERS = ("examples", "steps", "dropped", "refresh", "chain", "unsent")
STATE_TENSORS, STATE_RECORD = "trainer.safetensors", "trainer.json"


def pick_device(name: str) -> torch.device:
    """The torch device of a setting: "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Trainer:
    """Trains one lineage. Test-then-train is the caller's: `score` a batch before `train` gets it.

    Counters: `examples` and `steps` learned from, `dropped` steps that were rejected because something in them
    was not finite. `refresh` numbers what was published; `version` is "lineage.refresh" and names the last
    published weights, not the steps since. With `config.spread_table` each rank has a part of the table
    (`learners.spread`), and every method is called by all ranks together.
    """

    def __init__(
        self,
        schema: Schema,
        config: ModelConfig,
        seed: int,
        lineage: str,
        device: str = "auto",
    ) -> None:
        self.schema, self.config, self.seed, self.lineage = schema, config, seed, lineage
        self._device = device
        self._spread = config.spread_table and config.family in GRADIENT_FAMILIES
        self.model = build_model(schema, config, seed, None if self._spread else pick_device(device))
        if self._spread:
            self.model.table = spread(self.model.table)
            self.model.to(pick_device(device))
        self.device = self.model.table.device  # a family that counts is on the CPU, whatever was asked for
        self.lesson = lesson_of(self.model, config)
        self.replay = Replay(schema, config.replay_rows, seed, config.replay_keep) if config.replay else None
        self.ewc: Consolidation | None = None
        self.renewal: Renewal | None = None
        if isinstance(self.lesson, GradientLesson):
            net, optimiser = self.lesson.model, self.lesson.optimiser
            self.ewc = Consolidation(net, optimiser, config.ewc) if config.ewc else None
            self.renewal = Renewal(net, optimiser, config.renew) if config.renew else None
        self.examples = self.steps = self.dropped = 0
        self.refresh = 0
        self.chain = weights.first_chain(schema, config, seed, lineage)
        self.unsent = False
        # Masks over table rows [R]: trained ever (a checkpoint has only these), and since the last update
        # sent.
        self.touched = torch.zeros(len(self.model.table), dtype=torch.bool, device=self.device)
        self.changed = self.touched.clone()

    @property
    def version(self) -> str:
        """The last published version, "lineage.refresh"."""
        return f"{self.lineage}.{self.refresh}"

    @property
    def rejected_steps(self) -> int:
        """Steps that were not finite and changed nothing: a caller should raise an alert when it grows."""
        return self.dropped

    def rewarm(self) -> None:
        """Begin the schedule of the learning rate and of the step size again: for a caller that knows of drift."""
        self.lesson.rewarm()

    def drifted(self, recent: Iterable[Batch], since_ms: int) -> None:
        """What comes since `since_ms` (event time) follows another rule.

        `rewarm`; hold on to what those of the `recent` rows need that came before (`ewc`), and rehearse them no more
        (`replay_keep` "since_drift").
        """
        self.rewarm()
        if self.replay is not None:
            self.replay.drifted(since_ms)
        if self.ewc is not None:
            self.ewc.consolidate(batch.take(batch.event_ms < since_ms) for batch in recent)

    def score(self, numbers: NDArray[np.float32], categories: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores float32 [n] by the newest weights (which may be ahead of `version`)."""
        if self.config.shards == 1 or not len(numbers):
            return self.model.predict(numbers, categories)

        def of_shard(part: slice) -> Tensor:
            scores = self.model.predict(numbers[part], categories[part])
            return torch.from_numpy(scores).to(self.device)

        n, shards = len(numbers), self.config.shards
        if self._spread:  # rows of the table are fetched by all ranks together
            joined = torch.cat([of_shard(part) for part in cuts(n, shards)])
        else:
            joined = ranks().joined(of_shard, n, shards)
        scores: NDArray[np.float32] = joined.cpu().numpy()
        return scores

    def train(self, batch: Batch) -> None:
        """Learns the rows in the given order, in steps of `config.batch_size` rows (the last one may be
        smaller, and with `config.smallest_batch` the first ones are).

        Labels must be such as the schema's target has; a step whose loss, gradient or new weights are not finite (a
        label that is NaN or infinite is one cause) changes nothing and counts in `dropped`.
        """
        self._work(batch, scored=False)
        self._replay(batch)

    def test_then_train(self, batch: Batch) -> NDArray[np.float32]:
        """`train`, and the scores float32 [n] of the rows, each by the weights before the step of its row."""
        scores: NDArray[np.float32] = torch.cat(self._work(batch, scored=True)).cpu().numpy()
        self._replay(batch)
        return scores

    def _replay(self, batch: Batch) -> None:
        """With a replay memory, learn as many older rows as the settings say, then remember these."""
        if self.replay is None:
            return
        for _ in range(self.config.replay):
            self._work(self.replay.draw(len(batch)), scored=False, fresh=False)
        self.replay.add(batch)

    def _work(self, batch: Batch, *, scored: bool, fresh: bool = True) -> list[Tensor]:
        numbers, index = self.model.inputs(batch.numbers, batch.categories)
        label = tensor(batch.label, self.device)
        weight = tensor(batch.weight, self.device)
        scores, start = [label[:0]], 0
        while start < len(batch):
            part = slice(start, start + (self.lesson.batch_size if self._tended else self.lesson.stride))
            rows = index[part]
            if start and self.model.vocabulary is not None:  # ids may have other rows since the last step
                rows = self.model.index(tensor(batch.categories[part], self.device))
            learned = self.lesson.learn(numbers[part], rows, label[part], weight[part], scored=scored)
            self._note(learned, fresh)
            if learned.steps and self._tended:
                self._tend(learned.touched, numbers[part], rows)
            if learned.steps and fresh:
                self._meet(batch.categories[part])
            if scored and learned.scores is not None:
                scores.append(learned.scores)
            start = part.stop
        return scores

    @property
    def _tended(self) -> bool:
        """Whether something happens between one step and the next, so that they are made one by one."""
        return self.renewal is not None or (self.ewc is not None and self.ewc.anchored)

    def _tend(self, touched: Tensor, numbers: Tensor, index: Tensor) -> None:
        if self.ewc is not None and isinstance(self.lesson, GradientLesson):
            self.ewc.after_step(touched, self.config.learning_rate * self.lesson.schedule.share)
        if self.renewal is not None:
            self.renewal.after_step(numbers, index)

    def _note(self, learned: Learned, fresh: bool) -> None:
        self.dropped += learned.rejected
        if learned.steps:
            self.touched[learned.touched] = True
            self.changed[learned.touched] = True
            self.unsent = True
            self.examples += learned.examples if fresh else 0
            self.steps += learned.steps

    def _meet(self, ids: NDArray[np.int64]) -> None:
        if isinstance(self.model, Counter) or self.model.vocabulary is None:
            return
        admitted, evicted = self.model.meet(ids)
        for rows, trained in ((evicted, False), (admitted, True)):
            if len(rows):
                self.lesson.forget(rows.to(self.device))
                if self.ewc is not None:
                    self.ewc.forget(rows.to(self.device))
                self.touched[rows] = trained
                self.changed[rows] = True

    def delta(self) -> Update:
        """The next refresh: table rows changed since the last update, and everything dense. Advances
        `version`.
        """
        return self._publish(whole=False)

    def full(self) -> Update:
        """The whole model. If steps were learned since the last update this advances `version`, and then it
        must be sent to everyone (the next refresh follows it); directly after `delta()` it is that same
        version.
        """
        return self._publish(whole=True)

    def _publish(self, *, whole: bool) -> Update:
        tensors = weights.extract(self.model, self.touched if whole else self.changed)
        previous, follows = self.refresh, self.chain
        if self.unsent or not whole:
            self.refresh += 1
            self.chain = weights.next_chain(follows, tensors)
            self.unsent = False
            self.changed.zero_()
        return Update(whole, self.lineage, previous, self.refresh, follows, self.chain, tensors)

    def advance(self, refresh: int) -> None:
        """Numbers the next update above `refresh`. A learner that went back to a checkpoint calls this with
        the newest published number and then sends `full()`: no version ever names two different weights.
        """
        self.refresh = max(self.refresh, refresh)
        self.unsent = True

    def clone(self, lineage: str, config: ModelConfig | None = None, seed: int | None = None) -> "Trainer":
        """A new lineage that starts from this one's weights, at refresh 0, with fresh optimiser memory and
        counters. A family that counts keeps all that it remembers.

        With another `config` of the same family, whatever has the same name and shape is taken over and the
        rest starts fresh (of a family that counts: all or nothing); from another family only the running
        statistics of the inputs are.
        """
        config, seed = config or self.config, self.seed if seed is None else seed
        child = Trainer(self.schema, config, seed, lineage, self._device)
        mine, its = weights.dense(self.model), weights.dense(child.model)
        alike = config.family == self.config.family
        fits = child.model.table.shape == self.model.table.shape and config.table == self.config.table
        if isinstance(self.model, Counter):
            fits = fits and [value.shape for value in mine.values()] == [
                value.shape for value in its.values()
            ]
            alike = alike and fits
        names = set(mine) if alike else set(EVERY_STATISTIC)
        with torch.no_grad():
            for name in names & set(its):
                if mine[name].shape == its[name].shape:
                    its[name].copy_(mine[name])
            if alike and fits:
                child.model.table[self.touched] = self.model.table[self.touched]
                child.touched.copy_(self.touched)
                if child.model.vocabulary is not None and self.model.vocabulary is not None:
                    child.model.vocabulary.copy_from(self.model.vocabulary)
                child.lesson.copy_memory(self.lesson)
        child.chain = weights.next_chain(f"{self.chain}>{lineage}", weights.dense(child.model))
        return child

    def relearning(self, config: ModelConfig) -> "Trainer":
        """The same lineage and version, which goes on learning with other settings (of `space.LATER`). The optimiser,
        the schedule and the replay memory begin anew.
        """
        heir = self.clone(self.lineage, config)
        for name in _COUNTERS:
            setattr(heir, name, getattr(self, name))
        heir.changed.copy_(self.changed)
        return heir

    def state(self) -> dict[str, bytes]:
        """Everything, as two files (safetensors and JSON): `load` continues bit-equal to never having
        stopped.
        """
        tensors = weights.extract(self.model, self.touched)
        tensors["changed"] = self.changed.cpu()
        touched = self.touched.nonzero().squeeze(1)
        tensors |= self.lesson.memory(touched)
        if self.replay is not None:
            tensors |= self.replay.state()
        if self.ewc is not None:
            tensors |= self.ewc.state(touched)
        if self.renewal is not None:
            tensors |= self.renewal.state()
        if self.model.vocabulary is not None:
            tensors |= self.model.vocabulary.memory(touched.cpu().numpy())
        return {STATE_TENSORS: tensors_to_bytes(tensors), STATE_RECORD: json.dumps(self._record()).encode()}

    def _record(self) -> dict[str, object]:
        settings = {"schema": self.schema.to_dict(), "config": self.config.to_dict()}
        numbers = {name: getattr(self, name) for name in ("seed", "lineage", *_COUNTERS)}
        return settings | numbers | {"schedule": self.lesson.record()}

    def load(self, state: dict[str, bytes]) -> None:
        """Becomes the trainer whose `state` this is: its settings, seed and lineage too, on this trainer's
        device.

        Raises ValueError, with this trainer unchanged, if the state has another schema or does not fit its
        settings.
        """
        record = json.loads(state[STATE_RECORD])
        if record["schema"] != self.schema.to_dict():
            raise ValueError(
                "the state belongs to another schema: the task's features changed since it was saved"
            )
        config = ModelConfig.from_dict(record["config"])
        loaded = Trainer(self.schema, config, record["seed"], record["lineage"], self._device)
        loaded._restore(tensors_from_bytes(state[STATE_TENSORS]))
        for name in _COUNTERS:
            setattr(loaded, name, record[name])
        loaded.lesson.load(record.get("schedule", {}))  # older states have none
        self.__dict__.update(loaded.__dict__)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        named = {name: tensors[name] for name in weights.names(self.model)}
        if reason := weights.problem(self.model, named):
            raise ValueError(f"the state does not fit its own settings: {reason}")
        weights.write(self.model, named)
        touched = named[weights.INDEX].to(self.device)
        self.touched[touched] = True
        self.changed.copy_(tensors["changed"])
        self.lesson.restore(tensors, touched)
        if self.replay is not None:
            self.replay.load(tensors)
        if self.ewc is not None:
            self.ewc.load(tensors, touched)
        if self.renewal is not None:
            self.renewal.load(tensors)
        if self.model.vocabulary is not None:
            self.model.vocabulary.restore(tensors, named[weights.INDEX].numpy())


def warm_up(schema: Schema, *configs: ModelConfig) -> None:
    """Compile, or load from the disk, what a step with these settings needs: ten seconds or so, once on a machine.

    A model that is thrown away learns one row. Left to the first labels of a stream, they would wait for the compiler.
    """
    one, numbers = np.ones(1, np.int64), np.zeros((1, len(schema.numbers)), np.float32)
    categories, score = np.zeros((1, schema.ids), np.int64), np.zeros(1, np.float32)
    for config in dict.fromkeys(configs):
        row = Batch(["warm-up"], one, one, numbers, categories, score, score)
        Trainer(schema, config, 0, "L0").train(row)

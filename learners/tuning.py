"""Tuning while the stream goes on: a population of settings that learn it, of which the worse half goes at each rung.

Successive halving (Jamieson & Talwalkar 2016; Li et al. 2018, "Hyperband"), made for a stream: all members score, then
learn, the same examples, so their losses compare (progressive validation), and the losses of the later half of a rung
decide. Every rung has twice the examples of the one before it and half the members, so each takes the same work. The
work comes from the arena's budget: a batch for which there is no credit passes the population by. A population is
drawn from a space (`learners.space`), and its first member has the champion's own settings: where these win, nothing is
better. Another winner goes on trial as any challenger does; it never becomes the champion here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from learners.batch import COUNTING_FAMILIES, Batch, ModelConfig, Schema
from learners.budget import Budget
from learners.challenger import Decision, Now
from learners.decisions import Decisions
from learners.judge import Judge
from learners.packing import part, prefixed
from learners.space import HOW, TuningConfig
from learners.trainer import Trainer
from learners.work import work_us


@dataclass(slots=True)
class Member:
    """One of a population, and its mean loss in the later half of this rung."""

    trainer: Trainer
    own: bool  # the champion's settings
    loss: float = 0.0
    counted: int = 0

    @property
    def mean(self) -> float:
        """Mean loss; infinite before the first."""
        return self.loss / self.counted if self.counted else math.inf


@dataclass(frozen=True)
class Winner:
    """The last of a population, to go on trial. `name` is what its trial is called."""

    trainer: Trainer
    name: str


@dataclass(frozen=True)
class Rung:
    """What came of a rung: all its members' settings (of the space) and losses, the best first, and how many stay."""

    population: int
    rung: int
    examples: int
    standing: list[tuple[dict[str, Any], float]]
    left: int
    winner: bool  # whether this ended with settings that are not the champion's


class Tuning:
    """The populations of one arena, one after the other, each after a pause of `pause` examples."""

    def __init__(
        self,
        schema: Schema,
        config: TuningConfig,
        seed: int,
        device: str,
        pause: int,
        judge: Judge,
        decisions: Decisions,
    ) -> None:
        self._schema, self._config, self._seed, self._device = schema, config, seed, device
        self._pause, self._judge, self._decisions = pause, judge, decisions
        self.members: list[Member] = []
        self.waiting: Winner | None = None  # until the arena takes it
        self._generation, self._rung, self._seen, self._next = 0, 0, 0, pause

    def observe(
        self, batch: Batch, champion: Trainer, examples: int, budget: Budget, now: Now
    ) -> list[Decision]:
        """New labelled examples: members score and learn them if there is credit. A decision if a rung ended by it.

        `examples` is how many the arena has observed.
        """
        if not self.members and examples >= self._next:
            self._begin(champion)
        n = len(batch)
        if not self.members or not budget.tune(sum(work_us(each.trainer, n) for each in self.members)):
            return []
        length = self._config.events << self._rung
        for member in self.members:
            score = member.trainer.score(batch.numbers, batch.categories)
            if self._seen >= length // 2:
                member.loss += float(self._judge.raw(batch.label, score).sum())
                member.counted += n
            member.trainer.train(batch)
        self._seen += n
        if self._seen < length:
            return []
        rung, lineage = self._halve(length, champion, examples), champion.lineage
        why = described(rung, self._config.rungs)
        return [self._decisions.plain("tune", lineage, lineage, why, evidence(rung), now)]

    def drop(self, examples: int) -> None:
        """End the population and forget its winner; the next one begins after the pause from `examples` on."""
        self.members, self.waiting, self._next = [], None, examples + self._pause

    def _begin(self, champion: Trainer) -> None:
        config = self._config
        if config.copies and champion.config.family in COUNTING_FAMILIES:
            return  # a family that counts learns in one way
        self._generation += 1
        self._rung = self._seen = 0
        for place, settings in enumerate(config.draw(champion.config, self._seed, self._generation)):
            name, seed = f"T{self._generation}-{place + 1}", self._seed + 1_000 * self._generation + place
            if config.copies:
                trainer = champion.clone(name, settings)
            else:
                trainer = Trainer(self._schema, settings, seed, name, self._device)
            self.members.append(Member(trainer, own=place == 0))

    def _halve(self, length: int, champion: Trainer, examples: int) -> Rung:
        order = sorted(self.members, key=lambda each: each.mean)  # of equals the first drawn
        self._rung += 1
        ended = self._rung >= self._config.rungs or len(order) <= 2
        left = 1 if ended else -(-len(order) // 2)
        standing = [(self._shown(each.trainer.config), each.mean) for each in order]
        self.members = [Member(each.trainer, each.own) for each in order[:left]]
        self._seen, won = 0, False
        if ended:
            best, self.members = self.members[0], []
            self._next = examples + self._pause
            won = not best.own and best.trainer.config != champion.config  # which another may have become
            if won:
                self.waiting = Winner(best.trainer, f"tuned-{self._generation}")
        return Rung(self._generation, self._rung, length, standing, left, won)

    def _shown(self, config: ModelConfig) -> dict[str, Any]:
        return {name: config.to_dict()[name] for name in self._config.space}

    def model(self, winner: Winner, champion: Trainer, lineage: str) -> tuple[Trainer, bool]:
        """The winner as a challenger, and whether it is a copy of the champion with the winner's settings.

        A copy knows all that the champion has learned; a member learned only what the budget let it.
        """
        config = winner.trainer.config
        alike = {name: getattr(champion.config, name) for name in HOW}
        if self._config.copies and replace(config, **alike) == champion.config:
            return champion.clone(lineage, config), True
        return winner.trainer.clone(lineage), False

    def state(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Files, and a record ready for JSON; `load` is the inverse."""
        trainers = [each.trainer for each in self.members] + ([self.waiting.trainer] if self.waiting else [])
        files = [prefixed(str(place), trainer.state()) for place, trainer in enumerate(trainers)]
        return {name: data for each in files for name, data in each.items()}, {
            "members": [[each.own, each.loss, each.counted] for each in self.members],
            "waiting": self.waiting.name if self.waiting else None,
            "counts": [self._generation, self._rung, self._seen, self._next],
        }

    def load(self, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
        """The inverse of `state`. ValueError if the state belongs to another schema, with this unchanged."""
        count = len(record["members"]) + (record["waiting"] is not None)
        trainers = [self._restored(files, str(place)) for place in range(count)]
        members = zip(trainers, record["members"], strict=False)
        self.members = [Member(trainer, *each) for trainer, each in members]
        self.waiting = Winner(trainers[-1], record["waiting"]) if record["waiting"] is not None else None
        self._generation, self._rung, self._seen, self._next = record["counts"]

    def _restored(self, files: Mapping[str, bytes], name: str) -> Trainer:
        trainer = Trainer(self._schema, ModelConfig(family="logistic"), self._seed, name, self._device)
        trainer.load(part(name, files))
        return trainer


def described(rung: Rung, rungs: int) -> str:
    """The rung in words."""
    (settings, loss), *_ = rung.standing
    best = ", ".join(f"{name} {value}" for name, value in settings.items())
    what = f"population {rung.population}, rung {rung.rung} of {rungs}"
    if rung.winner:
        return f"{what}: the winner has {best} (loss {loss:.4g}) and goes on trial"
    if rung.left == 1:
        return f"{what}: the champion's own settings did best ({best}, loss {loss:.4g})"
    return f"{what}: {rung.left} of {len(rung.standing)} go on, the best has {best} (loss {loss:.4g})"


def evidence(rung: Rung) -> dict[str, Any]:
    """The rung, ready for JSON."""
    standing: Sequence[dict[str, Any]] = [
        {"settings": settings, "loss": loss if math.isfinite(loss) else None}
        for settings, loss in rung.standing
    ]
    return {
        "population": rung.population,
        "rung": rung.rung,
        "examples": rung.examples,
        "left": rung.left,
    } | {"members": standing}

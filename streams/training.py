"""One learner's arena, where it stands in the log, and what follows from a step."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from infra.clock import now_ms
from infra.metrics import Metrics
from learners.arena import Arena, Decision, Event
from learners.batch import Batch, Schema
from learners.challenger import Now
from learners.drift import Alert
from learners.entrants import FIRST
from learners.entries import Position, Run, Settings, Steered, Version
from learners.ledger import Ledger
from learners.parallel import ranks
from learners.recipe import Recipe
from learners.registry import Lineage, Quarantine, Registry
from learners.slot import trainer_of
from learners.trainer import Trainer
from streams.announce import Announcer
from streams.crew import Learn, Save, Use
from streams.heads import Heads
from streams.kept import positions_of
from streams.publishing import Place, Publisher

log = logging.getLogger(__name__)


def standing(arena: Arena) -> dict[str, Trainer]:
    """The replaced models that still learn, by lineage: what one can go back to without a loss."""
    kept = (arena.continuous, arena.guard.former if arena.guard else None)
    return {arm.lineage: arm for arm in kept if arm is not None}


def steer(arena: Arena, asked: Steered, schema: Schema, heads: Heads) -> tuple[list[Event], str]:
    """Promote, reject or roll back, as decided outside of the arena: the events, and the lineage that was made for it.

    A stored model becomes a new lineage, whose parent is in the evidence. Raises BadUpdate, KeyError or ValueError
    where the target cannot be had.
    """
    now, born = Now(asked.event_ms, asked.created_ms), ""
    if asked.action == "promote":
        events = arena.approve(asked.target, now.event_ms, now.created_ms)
    elif asked.action == "reject":
        events = arena.dismiss(asked.target, asked.why, now)
    else:
        good, facts = standing(arena).get(asked.target), dict[str, Any]()
        if good is None and asked.target:
            head = heads.kept_model(asked.target)
            good, facts = trainer_of(schema, head.meta, head.payload, "L0"), {"parent": asked.target}
            good.lineage = born = arena.born(good.config, good.seed)
        events = arena.roll_back(asked.why, facts, now, good)
    first, *rest = events
    assert isinstance(first, Decision)
    return [replace(first, evidence=first.evidence | asked.facts), *rest], born


class Training:
    """An arena made by `recipe`, after `step` steps, with the position of each partition.

    `begun` is the entry and the positions with which the arena began. While steps of the ledger are repeated,
    `published` has those after which a version was made: it is in the ledger too, and not made by the step itself.
    """

    def __init__(
        self, recipe: Recipe, ledger: Ledger, publisher: Publisher, announcer: Announcer, registry: Registry
    ) -> None:
        self.recipe, self.arena = recipe, recipe.arena()
        self._ledger, self._publisher, self._announcer, self._registry = (
            ledger,
            publisher,
            announcer,
            registry,
        )
        self.metrics = Metrics()
        self.step = self._event_ms = 0
        self.positions: dict[int, Position] = {}
        self.begun: dict[str, Any] = {}
        self._born: dict[str, int] = {}
        self.published: set[int] = set()
        self._spent = self.arena.budget.spent  # as the metrics know it

    def state(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Everything: files, and a record ready for JSON."""
        ranks().tell(Save())
        files, arena = self.arena.state()
        return files, {
            "arena": arena,
            "recipe": self.recipe.to_dict(),
            "schema": self.recipe.schema.hash,
            "step": self.step,
            "positions": self.positions,
            "event_ms": self._event_ms,
            "born": self._born,
            "begun": self.begun,
            "updates": self._publisher.state(),
            "ledger": {"n": self._ledger.n, "chain": self._ledger.chain},
        }

    def load(self, files: dict[str, bytes], meta: dict[str, Any]) -> None:
        """The inverse of `state`. Raises ValueError, KeyError or TypeError for one that cannot be understood."""
        recipe = Recipe.from_dict(meta["recipe"])
        arena = recipe.arena()
        arena.load(files, meta["arena"])
        self.positions = self.positions | positions_of(meta)
        self.step, self._event_ms = meta["step"], meta["event_ms"]
        self._born, self.begun = dict(meta["born"]), dict(meta["begun"])
        self._publisher.load(meta["updates"])
        self.recipe, self.arena, self._spent = recipe, arena, arena.budget.spent

    def begin(self, recipe: Recipe, positions: dict[int, Position], why: str) -> None:
        """Learn with an untrained model, from these positions on."""
        self._ledger.append(
            Settings(self.step, recipe.hash, recipe.to_dict(), True, why, positions), now_ms()
        )
        self.use(recipe, fresh=True, positions=positions)
        self.begun = {"n": self._ledger.n, "positions": positions}
        self._record_lineage(self.arena.champion.lineage, None, why, 0)

    def change(self, recipe: Recipe) -> None:
        """Go on with other settings."""
        why = "the task file changed, or the device"
        entry = Settings(self.step, recipe.hash, recipe.to_dict(), False, why, self.positions)
        self._ledger.append(entry, now_ms())
        was, wanted = self.recipe.champion.to_dict(), recipe.champion.to_dict()
        self.use(recipe, fresh=False, positions=self.positions)
        champion, differ = self.arena.champion, [name for name in wanted if wanted[name] != was[name]]
        has = champion.config.to_dict()
        if taken := [name for name in differ if has[name] == wanted[name]]:
            log.info("%s goes on with the new %s", champion.lineage, ", ".join(taken))
        if kept := [name for name in differ if has[name] != wanted[name]]:
            log.warning(
                "model %s changed, and %s keeps what it has: models that begin from now on are made with it\n"
                "  fix: wait until one of them wins, or begin anew under another task.name",
                ", ".join(kept),
                champion.lineage,
            )

    def use(self, recipe: Recipe, *, fresh: bool, positions: dict[int, Position]) -> None:
        """Do what a `Settings` of the ledger says."""
        ranks().tell(Use(recipe.to_dict(), fresh))
        self.recipe, self.arena = recipe, recipe.arena(None if fresh else self.arena)
        self._spent = self.arena.budget.spent
        if fresh:
            self._born, self.positions = {FIRST: self.step}, dict(positions)

    def learn(self, batch: Batch, runs: Sequence[Run]) -> None:
        """One step, and what comes of it."""
        created_ms = now_ms()
        ranks().tell(Learn(batch, created_ms))
        events = self.arena.observe(batch, created_ms)
        self.step += 1
        for run in runs:
            self.positions[run.partition] = run.end
        self._event_ms = max(self._event_ms, int(batch.event_ms.max()))
        self.metrics.count("trained_total", len(batch))
        self._note_work()
        self._handle(events, created_ms)

    def _note_work(self) -> None:
        """What was spent of the arena's budget since the last step."""
        budget, metrics, before = self.arena.budget, self.metrics, self._spent
        self._spent = budget.spent
        champion, beside, tuned, passed = (now - then for now, then in zip(self._spent, before, strict=True))
        metrics.note("arena_budget", budget.share)
        metrics.count("champion_work_ms_total", champion)
        metrics.count("beside_work_ms_total", beside)
        metrics.count("tuning_work_ms_total", tuned)
        metrics.count("passed_over_total", passed)

    def steer(self, asked: Steered) -> None:
        """Promote or roll back, as it was decided outside of the arena.

        Raises BadUpdate, KeyError or ValueError where the target cannot be had.
        """
        ranks().tell(asked)
        events, born = steer(self.arena, asked, self.recipe.schema, self._publisher.heads)
        if born:
            self._born[born] = self.step
        self._handle(events, asked.created_ms)

    def warned(self, alert: Alert) -> None:
        """Inputs or scores of served events moved."""
        ranks().tell(alert)
        if (told := self.arena.warned(alert)) is not None:
            self.tell(told)

    def tell_feature_drift(self, psi: dict[str, float], event_ms: int) -> None:
        """Tell how far each column of served events has moved."""
        self._announcer.tell_feature_drift(psi, event_ms)

    def tell(self, event: Event, created_ms: int | None = None) -> None:
        """Tell of an event, and count it; what it asks for is not done."""
        if isinstance(event, Alert):
            self.metrics.count("alerts_total", of=event.level)
        elif isinstance(event, Decision):
            self.metrics.count("decisions_total", of=event.action)
        self._announcer.tell(event, created_ms)

    def _handle(self, events: Sequence[Event], created_ms: int) -> None:
        """Tell what happened, and do what a decision asks for."""
        for event in events:
            self.tell(event, created_ms)
            if isinstance(event, Decision):
                self._follow(event)

    def refresh(self) -> None:
        """Publish what changed, if anything did."""
        if self.arena.champion.unsent:
            self._publisher.refresh(self.arena.champion, self._place)
            self.metrics.count("refreshes_total")
        if (canary := self._canary) is not None and canary.unsent:
            self._publisher.refresh(canary, self._place_of(canary), self.recipe.guard.canary)

    @property
    def _canary(self) -> Trainer | None:
        """The canary, once it is out."""
        canary = self.arena.trials.canary
        return canary.trainer if canary and canary.lineage == self._publisher.canary else None

    def publish_again(self, version: Version) -> bool:
        """Publish a version of the ledger; whether it is the same to the bit."""
        share = 0.0 if version.lineage == self.arena.champion.lineage else self.recipe.guard.canary
        return self._publisher.again(self.arena.arm(version.lineage), version, share)

    def settle(self) -> None:
        """After a start: see that serving has the champion, and the canary if there is one."""
        canary = self.arena.trials.canary
        self._publisher.settle(self.arena.champion, self._place, canary.lineage if canary else "")
        if canary is not None:
            self._let_serve(canary.trainer, "the learner started")

    def _let_serve(self, canary: Trainer, why: str) -> None:
        self._publisher.let_serve(canary, self._place_of(canary), why, self.recipe.guard.canary)

    def keep_head(self) -> None:
        """Store the newest version whole, for workers that start."""
        self._publisher.keep_head(self.arena.champion, self._event_ms)
        if (canary := self._canary) is not None:
            self._publisher.keep_head(canary, self._event_ms, self.recipe.guard.canary)

    @property
    def event_ms(self) -> int:
        """The newest event time that was learned from."""
        return self._event_ms

    @property
    def _place(self) -> Place:
        return self._place_of(self.arena.champion)

    def _place_of(self, arm: Trainer) -> Place:
        born = self._born[arm.lineage]
        return Place(self.step, born, self.arena.examples, self._event_ms, dict(self.positions))

    def _follow(self, decision: Decision) -> None:
        """Do what a decision asks for."""
        if decision.action == "start":
            self._born[decision.lineage] = self.step
            parent = self.arena.champion.version if self.arena.copied(decision.lineage) else None
            self._record_lineage(decision.lineage, parent, decision.reason, decision.event_ms)
        if decision.action == "rollback":
            if parent := decision.evidence.get("parent"):
                self._record_lineage(decision.lineage, parent, decision.reason, decision.event_ms)
            self._bar(decision.champion, decision)
        if decision.action == "reject" and decision.evidence.get("canary"):
            self._bar(decision.lineage, decision)
        if self.step in self.published:
            return
        over = decision.lineage == self._publisher.canary and decision.action in (
            "reject",
            "expire",
            "retire",
        )
        if decision.action == "canary":
            self._let_serve(self.arena.arm(decision.lineage), decision.reason)
        elif decision.action in ("promote", "rollback") or over:
            self._publisher.whole(self.arena.champion, self._place, decision.reason)
            self.metrics.count("swaps_total")

    def _bar(self, lineage: str, decision: Decision) -> None:
        """Quarantine what served and did harm, before the good model goes out."""
        reason, facts, event_ms = decision.reason, decision.evidence, decision.event_ms
        self._registry.quarantine(Quarantine(lineage, reason, facts, event_ms, decision.created_ms))

    def _record_lineage(self, name: str, parent: str | None, why: str, event_ms: int) -> None:
        config, seed, schema = self.arena.config_of(name), self.arena.seed_of(name), self.recipe.schema.hash
        self._registry.record(Lineage(name, parent, config.to_dict(), seed, schema, why, event_ms, now_ms()))

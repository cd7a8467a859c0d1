"""What the learner does beside learning: sees that a swap reaches every worker, and what people ask for.

Reports of the workers and commands become decisions. A worker that cannot use the champion, or serves it badly, is a
reason to put the former one back; what a person asks for and cannot be done is declined with the reason. What changes a
model goes through the training ledger, as any step does (`learners.entries.Steered`), so that it can be repeated.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from infra.errors import UserError
from learners.admission import BadUpdate
from learners.arena import Arena, Decision
from learners.batch import ModelConfig
from learners.challenger import Action, Now
from learners.costs import Costs
from learners.entries import Steered
from learners.registry import Registry
from learners.rollback import GuardConfig, Served
from learners.slot import Slot
from streams.control import Command, Control
from streams.fleet import Fleet, Refusal, Report
from streams.heads import Heads
from streams.training import standing

ITS_FAULT = (
    "weights",
    "golden",
    "latency",
)  # the other checks speak of the way to the worker, or of the worker


class Declined(Exception):
    """A command that cannot be done; the message says why."""


class Steering:
    """One task's. `control` brings reports and commands; `heads` and `registry` know what one can go back to.

    `costs` times a new challenger before its first verdict.
    """

    def __init__(
        self, guard: GuardConfig, costs: Costs, control: Control, heads: Heads, registry: Registry
    ) -> None:
        self._control, self._heads, self._registry, self.costs = control, heads, registry, costs
        self._fleet, self._served = Fleet(), Served(guard)
        self._live = ""
        self._canary: tuple[str, Served] | None = None  # its lineage, and what the workers serve by it
        self._told: set[tuple[str, str, str]] = set()  # worker, lineage and check of refusals

    def turn(
        self, arena: Arena, step: int, now: Now, done: Collection[str] = ()
    ) -> Iterator[Decision | Steered]:
        """What follows from all that came since the last turn, after `step` steps: to tell, or to do.

        `done` are the ids of commands that were done before and may come once more.
        """
        champion = arena.champion
        self._note(arena, now.created_ms)
        for lineage, why, facts in self.costs.excessive(champion, arena.challengers):
            yield Steered(step, "reject", lineage, why, facts, now.event_ms, now.created_ms)
        yield from self._canary_served(arena, step, now)
        for each in self._control.poll():
            if isinstance(each, Report):
                yield from self._hear(each, arena, step, now)
            elif each.command_id not in done:
                yield self._do(each, arena, step, now)
        if arena.guard is not None and arena.champion is champion and (reason := self._served.reason):
            yield _steered(step, now, "", reason, self._served.evidence())
        for late in self._fleet.late(now.created_ms):
            has = late.has or "no canary"
            reason = f"{late.worker} serves {has}, {late.late_ms / 1000:.1f} s after {late.after}"
            facts = {"worker": late.worker, "has": late.has, "late_ms": late.late_ms}
            yield _said("straggle", late.wanted, late.worker, reason, facts, arena, now)

    def _note(self, arena: Arena, now_ms: int) -> None:
        """What all workers should have since now: a new champion, a canary, or no canary any more."""
        champion, canary = arena.champion, arena.trials.canary
        if self._canary is not None and (canary is None or canary.lineage != self._canary[0]):
            self._canary = None
            self._fleet.canary_ended(champion.version, now_ms)
        if champion.lineage != self._live:
            self._live = champion.lineage
            self._fleet.swapped(champion.version, now_ms)
            self._served.swapped(champion.lineage)
        if canary is not None and self._canary is None:
            self._canary = canary.lineage, self._served.beside(canary.lineage)
            self._fleet.canary_began(canary.trainer.version, now_ms)

    def _canary_served(self, arena: Arena, step: int, now: Now) -> Iterator[Steered]:
        """A canary that the workers serve badly goes before any label says so."""
        if self._canary is not None and (reason := self._canary[1].reason):
            lineage, facts = self._canary[0], self._canary[1].evidence()
            yield Steered(step, "reject", lineage, reason, facts, now.event_ms, now.created_ms)

    def _hear(self, report: Report, arena: Arena, step: int, now: Now) -> Iterator[Decision | Steered]:
        lineage = report.version.partition(".")[0]
        self._fleet.hear(report)
        if not report.canary:
            self._served.hear(lineage, report.scored)
        elif self._canary is not None:
            self._canary[1].hear(lineage, report.scored)
        for refusal in report.refused:
            yield from self._refused(report.worker, refusal, arena, step, now)

    def _refused(
        self, worker: str, refusal: Refusal, arena: Arena, step: int, now: Now
    ) -> Iterator[Decision | Steered]:
        """A worker did not take a model; a new champion goes if the reason is the model itself."""
        about = (worker, refusal.version.partition(".")[0], refusal.step)
        if about in self._told:  # a worker tries again with every newer head
            return
        self._told.add(about)
        facts = {"worker": worker, "version": refusal.version, "step": refusal.step}
        reason = f"{worker} did not take {refusal.version or 'an update'} ({refusal.step}): {refusal.reason}"
        yield _said("refuse", refusal.version, worker, reason, facts, arena, now)
        if refusal.step in ITS_FAULT and about[1] == arena.champion.lineage and arena.guard is not None:
            yield _steered(step, now, "", reason, facts)
        canary = arena.trials.canary
        if refusal.step in ITS_FAULT and canary is not None and about[1] == canary.lineage:
            yield Steered(step, "reject", about[1], reason, facts, now.event_ms, now.created_ms)

    def _do(self, command: Command, arena: Arena, step: int, now: Now) -> Decision | Steered:
        """What a person asks for; declined, with the reason, where it cannot be done."""
        facts = {"command_id": command.command_id, "by_hand": command.reason}
        try:
            target = self._target(command, arena)
            if command.action == "rollback" and target not in standing(arena):
                self._try(target, arena)  # now, since every life does again what the ledger has
        except (Declined, BadUpdate, UserError, KeyError, ValueError) as error:
            about = command.target or arena.champion.lineage
            return _said("decline", about, command.command_id, str(error), facts, arena, now)
        why = command.reason or "a person decided"
        return Steered(step, command.action, target, why, facts, now.event_ms, now.created_ms)

    def _target(self, command: Command, arena: Arena) -> str:
        """Whom the command is about: a lineage that still learns, or a stored version."""
        live, barred = arena.champion.lineage, self._registry.quarantined()
        lineage = command.target.partition(".")[0]
        if command.live != live:
            raise Declined(f"{command.live} is not live any more, {live} is")
        if lineage in barred:
            raise Declined(f"{lineage} is quarantined: {barred[lineage].reason}")
        if command.action == "promote":
            on_trial = [challenger.lineage for challenger in arena.challengers]
            if command.target not in on_trial:
                raise Declined(f"{command.target} is not on trial; {', '.join(on_trial) or 'nobody'} is")
            return command.target
        kept = self._heads.kept()
        for wanted in [command.target] if command.target else self._before(arena, barred):
            if wanted in standing(arena):
                return wanted
            if stored := [version for version in kept if wanted in (version, version.partition(".")[0])]:
                return stored[-1]
        asked, known = command.target or "to go back to", ", ".join(kept) or "none"
        raise Declined(f"there is no stored model {asked}; stored are {known}")

    def _before(self, arena: Arena, barred: Mapping[str, Any]) -> list[str]:
        """What the guard kept, then the good lineages that were live before the champion, the last first."""
        born = {birth.name: birth.created_ms for birth in self._registry.lineages()}
        history = self._registry.history()
        # Where a name was given once more, its former bearer does not count.
        was = [each.lineage for each in history if each.since_ms >= born[each.lineage]]
        was += [arena.guard.former.lineage] if arena.guard else []
        return [lineage for lineage in reversed(was) if lineage not in (arena.champion.lineage, *barred)]

    def _try(self, version: str, arena: Arena) -> None:
        """Check a stored model as it will be when it is taken. Raises BadUpdate, UserError, KeyError or ValueError."""
        head = self._heads.kept_model(version)
        config = ModelConfig.from_dict(head.meta["config"])
        Slot(arena.champion.schema, config, head.meta["seed"]).prepare(head.meta, head.payload)


def _steered(step: int, now: Now, target: str, why: str, facts: dict[str, Any]) -> Steered:
    return Steered(step, "rollback", target, why, facts, now.event_ms, now.created_ms)


def _said(
    action: Action, version: str, who: str, reason: str, facts: dict[str, Any], arena: Arena, now: Now
) -> Decision:
    """A decision that changes no model; its id is the same however often it is said."""
    lineage, champion = version.partition(".")[0], arena.champion.lineage
    decision_id = f"{action}-{version}-{who}"
    return Decision(decision_id, action, lineage, champion, reason, facts, now.event_ms, now.created_ms)

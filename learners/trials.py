"""The challengers on trial: when some start, and what follows from their tests. The arena lets them score and learn."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from learners.batch import Batch, ModelConfig, Schema
from learners.budget import Budget
from learners.buffer import BUFFER, Buffer
from learners.canary import CanaryTest
from learners.challenger import Action, Challenger, Decision, Now
from learners.decisions import Decisions
from learners.drift import BY_TEST, Alert, DriftConfig
from learners.entrants import MOST, Entrants
from learners.measure import Seen
from learners.packing import pack, unpack
from learners.rollback import GuardConfig
from learners.segments import Segments
from learners.study import EXTRA, Studies
from learners.trainer import Trainer
from learners.trust import Trust, TrustConfig
from learners.tuning import Tuning
from learners.verdict import PairedTest
from learners.work import work_us

TUNED = "tuned"  # the kind of a challenger that won a population; all others are started by an alarm, or by "always"
_TAUGHT = 256  # rows of a batch when it is estimated what a row costs


class Trials:
    """An alert starts challengers, unless some are on trial or others were started within the cooldown: "warm" is a
    copy of the champion that learns with the challenger's settings, "fresh" is an untrained model of the challenger's
    kind, "past" is an earlier champion where one does better (`learners.entrants`). All first learn what came since
    the onset of the drift, which is no part of their test, and then rehearse it beside what comes (`learners.study`).
    Each is tested at alpha divided by the most that there can be, so that an alert ends in a wrong promotion with
    probability at most alpha.

    A winner of a population (`learners.tuning`) goes on trial beside them, one at a time: under the policy "drift" only
    while an alarm has others on trial, under all other policies as soon as it is found.

    What they do is paid for from the arena's budget. Without credit they pass over a batch, all of them: they neither
    score nor learn it, and their test does not count it. That is decided before it is seen, so the test is as good.
    """

    def __init__(
        self,
        schema: Schema,
        settings: tuple[ModelConfig, ModelConfig],
        others: Sequence[ModelConfig],
        drift: DriftConfig,
        seed: int,
        device: str,
        decisions: Decisions,
        harm: Callable[[float], Segments],
        budget: Budget,
        tuning: Tuning | None,
        trust: TrustConfig,
        guard: GuardConfig,
    ) -> None:
        self._drift, self._decisions, self._budget = drift, decisions, budget
        self._tuning, self._guard = tuning, guard
        limits = {"min_events": drift.min_events, "max_events": drift.max_events}
        alpha = drift.alpha / (MOST + len(others) + (tuning is not None))
        self.test: Callable[[], PairedTest] = partial(PairedTest, alpha, drift.min_effect, **limits)
        self.harm: Callable[[], Segments] = partial(harm, alpha)
        self._trusted, self.trust = trust, Trust(trust)
        self.challengers: list[Challenger] = []
        self.attending = True  # whether the challengers take part in this step
        self.entrants = Entrants(schema, *settings, seed, device, others)
        self.studies = Studies()
        self._quiet_until = 0  # none are started before this many examples
        self._episode = ""  # the alert that the newest of them were started after, "" if none was
        self._of_loss = False  # whether the newest were started because the loss rose

    @property
    def _asked(self) -> list[Challenger]:
        """Those that an alarm, or the policy "always", has started."""
        return [challenger for challenger in self.challengers if challenger.kind != TUNED]

    def episode_of(self, challenger: Challenger) -> str:
        """The alert that a challenger was started after, "" if it needed none."""
        return "" if challenger.kind == TUNED else self._episode

    @property
    def episode(self) -> str:
        """The alert whose challengers are on trial, "" without any."""
        return self._episode if self._asked else ""

    def _work_us(self, rows: int) -> float:
        return sum(work_us(challenger.trainer, rows) for challenger in self.challengers)

    def attend(self, rows: int) -> None:
        """A step of so many rows begins: do the challengers take part? A canary always does, since it serves."""
        if self.canary is not None:
            self.attending = True
            self._budget.must(self._work_us(rows))
            return
        self.attending = self._budget.spend(self._work_us(rows))
        if not self.attending:
            self._budget.passed += rows

    def judge(self, seen: Seen, champion: str, now: Now) -> tuple[list[Decision], Challenger | None]:
        """Give each challenger this step's evidence, and do what its verdict asks for.

        The best comes first; one that is to be promoted is returned, and ends the round.
        """
        if not self.attending:
            return [], None
        held = self.trust.held(seen.batch)
        for challenger in self.challengers:
            own = seen.losses[challenger.lineage]
            challenger.update(seen.losses[champion], own, seen.about, held, seen.batch.arm, seen.served)
        made: list[Decision] = []
        for challenger in sorted(self.challengers, key=lambda each: -each.test.e_value):
            verdict, canary = challenger.verdict, challenger.canary
            waited = verdict == "keep" if canary else challenger.test.count >= self._drift.max_events
            if verdict == "promote" and (self._drift.policy in BY_TEST or canary):
                return made, challenger
            if verdict == "reject" or waited:
                self.challengers.remove(challenger)
                action: Action = "reject" if verdict == "reject" else "expire"
                made.append(self._decisions.about(action, challenger, champion, now))
            elif verdict == "promote" and not challenger.recommended:
                challenger.recommended = True
                made.append(self._decisions.about("recommend", challenger, champion, now))
        return made, None

    def start(
        self, alerts: Sequence[Alert], champion: Trainer, buffer: Buffer, examples: int, now: Now
    ) -> list[Decision]:
        """Start the challengers of an alert, or those that need none. `examples` were observed so far.

        None start beside a canary: it was tested on what came of late.
        """
        if self.canary is not None:
            return []
        if alerts:
            made = self._start_asked(alerts[0], champion, buffer, examples, now)
        else:
            made = self._start_unasked(champion, buffer, examples, now)
        return [*made, *self._admit(champion, buffer, now)]

    def _start_asked(
        self, alert: Alert, champion: Trainer, buffer: Buffer, examples: int, now: Now
    ) -> list[Decision]:
        """Start the challengers of an alert, unless some are on trial or it is too soon.

        A loss that rises makes an earlier alarm about inputs old news: its challengers learned what no longer
        holds, so they retire for ones that begin with the onset of the rise.
        """
        news = alert.level == "loss" and not self._of_loss
        if not news and (self._asked or examples < self._quiet_until):
            return []
        retired = self._retire(self._asked, champion.lineage, now, "a newer alarm makes it old")
        self._of_loss, self._episode = alert.level == "loss", alert.alert_id
        self._quiet_until = examples + self._drift.cooldown
        return [*retired, *self._begin(champion, buffer, alert.alert_id, alert.message, alert.since_ms, now)]

    def _start_unasked(self, champion: Trainer, buffer: Buffer, examples: int, now: Now) -> list[Decision]:
        """Under the policy "always", challengers without an alarm, when there have been none for a while."""
        free_from = self._quiet_until + self._drift.cooldown
        if self._drift.policy != "always" or self._asked or examples < free_from:
            return []
        self._of_loss, self._episode = False, ""
        self._quiet_until = examples + self._drift.cooldown
        since_ms = next(int(batch.event_ms[0]) for batch in buffer)
        return self._begin(
            champion, buffer, f"always-{examples}", "the policy is to try always", since_ms, now
        )

    def _begin(
        self, champion: Trainer, buffer: Buffer, alert_id: str, why: str, since_ms: int, now: Now
    ) -> list[Decision]:
        """New challengers, taught what came since then."""
        made = self.entrants.make(champion, buffer, since_ms)
        new = [self._on_trial(arm, kind, alert_id, copied=kind == "warm") for kind, arm in made]
        since_ms = self._teach([challenger.trainer for challenger in new], buffer, since_ms)
        self.challengers += new
        self.studies.begin([challenger.lineage for challenger in new], since_ms)
        return [self._decisions.about("start", challenger, champion.lineage, now, why) for challenger in new]

    def _on_trial(self, arm: Trainer, kind: str, alert_id: str, *, copied: bool) -> Challenger:
        return Challenger(
            arm, kind, alert_id, self.test(), segments=self.harm(), copied=copied, holdout=self.holdout()
        )

    def _teach(self, arms: Sequence[Trainer], buffer: Buffer, since_ms: int) -> int:
        """Let them learn what came since then, or as much of it as the budget has credit for; since when it was."""
        each = sum(work_us(arm, _TAUGHT) for arm in arms) / _TAUGHT
        since_ms = buffer.newest_ms(self._budget.rows(each, BUFFER), since_ms)
        for arm in arms:
            before = arm.examples
            buffer.teach(arm, since_ms)
            self._budget.must(work_us(arm, arm.examples - before))
        return since_ms

    def _admit(self, champion: Trainer, buffer: Buffer, now: Now) -> list[Decision]:
        """Put a population's winner on trial, if one waits and the policy lets it."""
        tuning, born = self._tuning, self.entrants.born
        if tuning is None or (winner := tuning.waiting) is None:
            return []
        tuned = len(self.challengers) - len(self._asked)
        if tuned or (self._drift.policy == "drift" and not self._asked):
            return []
        tuning.waiting = None
        seed = winner.trainer.seed
        arm, copied = tuning.model(winner, champion, born(winner.trainer.config, seed))
        if not copied:
            oldest_ms = min(int(batch.event_ms.min()) for batch in buffer)
            self._teach([arm], buffer, oldest_ms)
        challenger = self._on_trial(arm, TUNED, winner.name, copied=copied)
        self.challengers.append(challenger)
        why = "it won a population"
        return [self._decisions.about("start", challenger, champion.lineage, now, why)]

    def holdout(self) -> PairedTest | None:
        """A new test on the entities that nobody learns from, if there are any."""
        return PairedTest(self._trusted.holdout_alpha, 0.0) if self._trusted.holdout else None

    @property
    def canary(self) -> Challenger | None:
        """The challenger that serves a share of the entities, if one does."""
        return next((challenger for challenger in self.challengers if challenger.canary is not None), None)

    def let_serve(self, winner: Challenger, champion: str, now: Now, why: str) -> list[Decision]:
        """The winner serves a share of the entities before it may serve all; the rest of the field retires."""
        winner.canary = CanaryTest(self._guard, winner.lineage)
        made = [self._decisions.about("canary", winner, champion, now, why)]
        made += self.retire(champion, now, f"{winner.lineage} won", but=winner)
        self.challengers = [winner]
        return made

    def retire(self, champion: str, now: Now, why: str, but: Challenger | None = None) -> list[Decision]:
        """All challengers go, without a verdict; of `but`, who becomes the champion, nothing is told."""
        gone = [challenger for challenger in self.challengers if challenger is not but]
        self.challengers = []
        return self._retire(gone, champion, now, why)

    def _retire(self, gone: Sequence[Challenger], champion: str, now: Now, why: str) -> list[Decision]:
        self.challengers = [challenger for challenger in self.challengers if challenger not in gone]
        return [self._decisions.about("retire", challenger, champion, now, why) for challenger in gone]

    def named(self, lineage: str) -> Challenger:
        """The challenger of a lineage. KeyError if it is not on trial."""
        return {challenger.lineage: challenger for challenger in self.challengers}[lineage]

    def dismiss(self, lineage: str, champion: str, now: Now, why: str) -> Decision:
        """One is rejected for another reason than its tests. KeyError if it is not on trial."""
        out = self.named(lineage)
        self.challengers.remove(out)
        return self._decisions.about("reject", out, champion, now, why)

    def rolled_back(self, champion: str, examples: int, now: Now) -> list[Decision]:
        """A champion was rolled back: all that began beside it go, and what was kept of it to be tried again.

        None are started within the cooldown from `examples` on, unless the loss rises.
        """
        self._quiet_until = examples + self._drift.cooldown
        self.entrants.bar(champion)
        if self._tuning is not None:
            self._tuning.drop(examples)
        return self.retire(champion, now, f"{champion} was rolled back")

    def rehearse(self, arm: Trainer, buffer: Buffer, batch: Batch) -> None:
        """The lineage has learned a new batch; let it rehearse, if it should and there is credit."""
        rows = len(batch)
        if (
            rows
            and self.studies.studying(arm.lineage)
            and self._budget.spend(EXTRA * work_us(arm, rows), keep=self._work_us(rows))
        ):
            self.studies.rehearse(arm, buffer, rows)

    def state(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """All but the models on trial: files, and a record ready for JSON; `load` is the inverse."""
        files, entrants = self.entrants.state()
        return files | {"trust.npz": pack(self.trust.state())}, {
            "challengers": [challenger.record() for challenger in self.challengers],
            "entrants": entrants,
            "studies": self.studies.record(),
            "quiet_until": self._quiet_until,
            "of_loss": self._of_loss,
            "episode": self._episode,
        }

    def load(
        self, files: Mapping[str, bytes], record: Mapping[str, Any], arm: Callable[[str], Trainer]
    ) -> None:
        """The inverse of `state`, with the models by lineage. ValueError, with this unchanged, as `Entrants.load`."""
        challengers = [
            Challenger.restored(
                arm(each["lineage"]),
                self.test(),
                self.harm(),
                self.holdout(),
                each,
                CanaryTest(self._guard, each["lineage"]),
            )
            for each in record["challengers"]
        ]
        self.entrants.load(files, record["entrants"])
        self.challengers = challengers
        self.studies.load(record["studies"])
        self.trust.load(unpack(files["trust.npz"]))
        self._quiet_until, self._of_loss = record["quiet_until"], record["of_loss"]
        self._episode = record["episode"]

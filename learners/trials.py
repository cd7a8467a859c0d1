"""The challengers on trial: when some start, and what follows from their tests. The arena lets them score and learn."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from learners.batch import Batch, ModelConfig, Schema
from learners.buffer import Buffer
from learners.challenger import Action, Challenger, Decision, Now
from learners.decisions import Decisions
from learners.drift import BY_TEST, Alert, DriftConfig
from learners.entrants import MOST, Entrants
from learners.measure import Seen
from learners.segments import Segments
from learners.study import Studies
from learners.trainer import Trainer
from learners.verdict import PairedTest


class Trials:
    """An alert starts challengers, unless some are on trial or others were started within the cooldown: "warm" is a
    copy of the champion that learns with the challenger's settings, "fresh" is an untrained model of the challenger's
    kind, "past" is an earlier champion where one does better (`learners.entrants`). All first learn what came since
    the onset of the drift, which is no part of their test, and then rehearse it beside what comes (`learners.study`).
    Each is tested at alpha divided by the most that there can be, so that an alert ends in a wrong promotion with
    probability at most alpha.
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
    ) -> None:
        self._drift, self._decisions = drift, decisions
        limits = {"min_events": drift.min_events, "max_events": drift.max_events}
        alpha = drift.alpha / (MOST + len(others))
        self.test: Callable[[], PairedTest] = partial(PairedTest, alpha, drift.min_effect, **limits)
        self.harm: Callable[[], Segments] = partial(harm, alpha)
        self.challengers: list[Challenger] = []
        self.entrants = Entrants(schema, *settings, seed, device, others)
        self.studies = Studies()
        self._quiet_until = 0  # none are started before this many examples
        self._of_loss = False  # whether the newest were started because the loss rose

    def judge(self, seen: Seen, champion: str, now: Now) -> tuple[list[Decision], Challenger | None]:
        """Give each challenger this step's evidence, and do what its verdict asks for.

        The best comes first; one that is to be promoted is returned, and ends the round.
        """
        for challenger in self.challengers:
            challenger.update(seen.losses[champion], seen.losses[challenger.lineage], seen.about)
        made: list[Decision] = []
        for challenger in sorted(self.challengers, key=lambda each: -each.test.e_value):
            verdict, waited = challenger.verdict, challenger.test.count >= self._drift.max_events
            if verdict == "promote" and self._drift.policy in BY_TEST:
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
        """Start the challengers of the first alert, unless some are on trial or it is too soon.

        A loss that rises makes an earlier alarm about inputs old news: its challengers learned what no longer
        holds, so they retire for ones that begin with the onset of the rise. `examples` were observed so far.
        """
        if not alerts:
            return self._start_unasked(champion, buffer, examples, now)
        alert = alerts[0]  # the loss detector's, if it raised one
        news = alert.level == "loss" and not self._of_loss
        if not news and (self.challengers or examples < self._quiet_until):
            return []
        retired = self.retire(champion.lineage, now, "a newer alarm makes it old")
        self._of_loss = alert.level == "loss"
        self._quiet_until = examples + self._drift.cooldown
        return [*retired, *self._begin(champion, buffer, alert.alert_id, alert.message, alert.since_ms, now)]

    def _start_unasked(self, champion: Trainer, buffer: Buffer, examples: int, now: Now) -> list[Decision]:
        """Under the policy "always", challengers without an alarm, when there have been none for a while."""
        free_from = self._quiet_until + self._drift.cooldown
        if self._drift.policy != "always" or self.challengers or examples < free_from:
            return []
        self._of_loss = False
        self._quiet_until = examples + self._drift.cooldown
        since_ms = next(int(batch.event_ms[0]) for batch in buffer)
        return self._begin(
            champion, buffer, f"always-{examples}", "the policy is to try always", since_ms, now
        )

    def _begin(
        self, champion: Trainer, buffer: Buffer, alert_id: str, why: str, since_ms: int, now: Now
    ) -> list[Decision]:
        """New challengers, taught what came since then, instead of those that there are."""
        made = self.entrants.make(champion, buffer, since_ms)
        self.challengers = [
            Challenger(arm, kind, alert_id, self.test(), segments=self.harm()) for kind, arm in made
        ]
        self.studies.begin([challenger.lineage for challenger in self.challengers], since_ms)
        return [
            self._decisions.about("start", challenger, champion.lineage, now, why)
            for challenger in self.challengers
        ]

    def retire(self, champion: str, now: Now, why: str, but: Challenger | None = None) -> list[Decision]:
        """All challengers go, without a verdict; of `but`, who becomes the champion, nothing is told."""
        gone = [challenger for challenger in self.challengers if challenger is not but]
        self.challengers = []
        return [self._decisions.about("retire", challenger, champion, now, why) for challenger in gone]

    def dismiss(self, lineage: str, champion: str, now: Now, why: str) -> Decision:
        """One is rejected for another reason than its tests. KeyError if it is not on trial."""
        out = {challenger.lineage: challenger for challenger in self.challengers}[lineage]
        self.challengers.remove(out)
        return self._decisions.about("reject", out, champion, now, why)

    def pause(self, examples: int) -> None:
        """None are started within the cooldown from `examples` on, unless the loss rises."""
        self._quiet_until = examples + self._drift.cooldown

    def rehearse(self, arm: Trainer, buffer: Buffer, batch: Batch) -> None:
        """The lineage has learned a new batch; let it rehearse, if it should."""
        self.studies.rehearse(arm, buffer, len(batch))

    def state(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """All but the models on trial: files, and a record ready for JSON; `load` is the inverse."""
        files, entrants = self.entrants.state()
        return files, {
            "challengers": [challenger.record() for challenger in self.challengers],
            "entrants": entrants,
            "studies": self.studies.record(),
            "quiet_until": self._quiet_until,
            "of_loss": self._of_loss,
        }

    def load(
        self, files: Mapping[str, bytes], record: Mapping[str, Any], arm: Callable[[str], Trainer]
    ) -> None:
        """The inverse of `state`, with the models by lineage. ValueError, with this unchanged, as `Entrants.load`."""
        challengers = [
            Challenger.restored(arm(each["lineage"]), self.test(), self.harm(), each)
            for each in record["challengers"]
        ]
        self.entrants.load(files, record["entrants"])
        self.challengers = challengers
        self.studies.load(record["studies"])
        self._quiet_until, self._of_loss = record["quiet_until"], record["of_loss"]

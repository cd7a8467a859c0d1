"""The arena: champion and challengers score the same labelled events, then learn from them; the better one
wins.

Pure: batches and the clock go in; alerts, decisions and metric rows come out. No Kafka, no files.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, ModelConfig, Schema
from learners.budget import USUAL_ARENA, ArenaConfig, Budget
from learners.buffer import BUFFER, Buffer
from learners.challenger import Action, Challenger, Decision, Now
from learners.decisions import Decisions
from learners.detectors import Detectors
from learners.drift import Alert, DriftConfig
from learners.entrants import FIRST
from learners.freshness import Freshness
from learners.judge import Judge
from learners.measure import TRIAL, Measure, Seen, arms_of
from learners.packing import pack, part, prefixed, unpack
from learners.prequential import MetricRow, Prequential
from learners.rejected import RejectedSteps
from learners.rollback import BETS, USUAL, Guard, GuardConfig
from learners.segments import Segments
from learners.space import TuningConfig
from learners.trainer import Trainer
from learners.trials import Trials
from learners.trust import FULL_TRUST, TrustConfig
from learners.tuning import Tuning
from learners.work import work_us

__all__ = ["Alert", "Arena", "Challenger", "Decision", "Event", "MetricRow"]

Scores = NDArray[np.float32]
Losses = NDArray[np.float64]
Event = Alert | Decision | MetricRow


class Arena:
    """All arms of one task. `observe` is the whole story; `champion` is what serving should run.

    Lineages are L1, L2, ... in the order of their birth. An alert starts challengers (`learners.trials`). A replaced
    champion is put back if the new one does worse (`learners.rollback`).
    """

    def __init__(
        self,
        schema: Schema,
        champion: ModelConfig,
        challenger: ModelConfig,
        drift: DriftConfig,
        seed: int,
        *,
        freeze_at_ms: int | None = None,
        window: int = 5_000,
        metrics_every: int = 500,
        segments: Sequence[str] = (),
        device: str = "auto",
        guard: GuardConfig = USUAL,
        others: Sequence[ModelConfig] = (),
        beside: ArenaConfig = USUAL_ARENA,
        tuning: TuningConfig | None = None,
        served: bool = False,
        trust: TrustConfig = FULL_TRUST,
    ) -> None:
        self._schema, self.settings, self._drift = schema, (champion, challenger), drift
        self._seed, self._device = seed, device
        self._freeze_at_ms, self._metrics_every = freeze_at_ms, metrics_every
        self.champion = Trainer(schema, champion, seed, FIRST, device)
        self.continuous: Trainer | None = None  # the first lineage, once it was replaced
        self.frozen: Trainer | None = None
        self._guarding, self._harm = guard, partial(Segments, segments, drift.max_segment_harm)
        self.guard: Guard | None = None
        self._detectors = Detectors(schema, drift, served=served)
        self._measured, self._buffer = Measure(schema, window, segments), Buffer(BUFFER)
        self._freshness = Freshness()
        self._packed: dict[str, Detectors | Prequential | Buffer | Freshness] = {
            "detectors.npz": self._detectors, "prequential.npz": self._measured.windows, "buffer.npz": self._buffer,
            "freshness.npz": self._freshness,
        }  # fmt: skip
        self._rejected, self._judged = RejectedSteps(drift.cooldown), Judge(schema.target, champion)
        self._decisions = Decisions(self._measured)
        self.budget = Budget(beside, tuning.budget if tuning else 0.0)
        learned = (drift.cooldown, self._judged, self._decisions)
        self.tuning = Tuning(schema, tuning, seed, device, *learned) if tuning else None
        self.trials = Trials(
            schema, (champion, challenger), others, drift, seed, device, self._decisions, self._harm, self.budget,
            self.tuning, trust, guard,
        )  # fmt: skip
        self.examples = 0  # labelled examples observed

    @property
    def challengers(self) -> list[Challenger]:
        """Those on trial."""
        return self.trials.challengers

    def warned(self, alert: Alert) -> Alert | None:
        """Inputs or scores of served events moved; what is to be told (see `Detectors.warned`).

        Challengers start when the labels of these events come.
        """
        return self._detectors.warned(alert, self._episode)

    @property
    def _episode(self) -> str:
        """The alert that is still being followed: its challengers are on trial, or guarded. "" if none is."""
        return self.trials.episode or (self.guard.episode if self.guard else "")

    def config_of(self, lineage: str) -> ModelConfig:
        """The settings of any lineage that was ever born here; KeyError for others."""
        return self.trials.entrants.configs[lineage]

    def seed_of(self, lineage: str) -> int:
        """The seed that the first weights of any lineage were drawn from; KeyError for one not born here.

        A copy keeps the seed of its original: table rows that nobody trained are still drawn from it.
        """
        return self.trials.entrants.seeds[lineage]

    def copied(self, lineage: str) -> bool:
        """Whether a challenger on trial began as a copy of the champion."""
        return any(each.lineage == lineage and each.copied for each in self.challengers)

    def observe(self, batch: Batch, created_ms: int) -> list[Event]:
        """Let all arms score, then learn from, labelled examples in their order. `created_ms` is the clock.

        Rows with a label that cannot be learned are left out. A long batch is worked off in steps of the first
        champion's batch size, so that no model is tested further from its last lesson than it would be live.
        """
        usable = self._schema.target.usable(batch.label)
        if not usable.all():
            batch = batch.take(usable)
        size = self.settings[0].batch_size
        events: list[Event] = []
        for start in range(0, len(batch), size):
            rows = batch.slice(start, min(start + size, len(batch)))
            events += self._step(rows, Now(int(rows.event_ms.max()), created_ms))
        return events

    def _step(self, batch: Batch, now: Now) -> list[Event]:
        """One step, in this order.

        0. pay for the step; without credit, challengers take no part in it (`learners.budget`)
        1. keep a frozen copy when it is time, before it could learn from this batch
        2. every arm scores the batch; none has learned from it
        3. metrics
        4. detectors
        5. the guard of the newest swap; tests, verdicts and what follows from them
        6. every arm but the frozen one learns from the batch, rows that correct an earlier one too; rejected steps
        7. a population whose settings are tuned scores and learns it, if there is credit; its winner waits
        8. an alert starts challengers, and a winner may join them; they are tested from the next batch on, which they
           have not learned
        """
        self._pay(len(batch))  # 0
        events: list[Event] = self._freeze(now)  # 1
        lesson = self.trials.trust.admitted(batch)
        whole, batch = batch, self._measured.corrected(batch)
        if not len(batch):
            return [*events, *self._learn(whole, lesson)]
        scores = self._score(batch)  # 2
        events += self._measure(batch, scores, now)  # 3
        losses = {arm: self._judged.losses(batch.label, score) for arm, score in scores.items()}
        champion = self.champion.lineage
        served = self._judged.losses(batch.label, batch.served)
        alerts = self._detect(batch, scores[champion], losses[champion], served)  # 4
        self._judged.note(batch.label, scores[champion])  # for the losses of the next step
        news = [*alerts, *self._detectors.due]
        if news:
            self.champion.drifted(self._buffer, news[0].since_ms)  # what it learned holds less now
        events += alerts
        seen = Seen(batch, scores, losses, served, self._measured.segmented(batch, self._drift.segment_share))
        events += self._watch(seen, now)  # 5
        events += self._judge(seen, now)
        events += self._learn(whole, lesson)  # 6
        if self.tuning is not None:
            taught = lesson.take(~lesson.corrects)
            events += self.tuning.observe(taught, self.champion, self.examples, self.budget, now)  # 7
        events += self._start(news, now)  # 8
        return events

    def _pay(self, rows: int) -> None:
        self.budget.earn(work_us(self.champion, rows))
        for arm in self._learners(challengers=False):
            if arm is not self.champion:
                self.budget.must(work_us(arm, rows))
        self.trials.attend(rows)

    def _learners(self, *, challengers: bool) -> list[Trainer]:
        """The arms that learn, each once: a replaced champion may be guarding and the reference as well."""
        kept = [self.continuous, self.guard.former if self.guard else None, self.champion]
        tried = [challenger.trainer for challenger in self.challengers] if challengers else []
        return list({arm.lineage: arm for arm in (*kept, *tried) if arm is not None}.values())

    def _present(self) -> list[Trainer]:
        """Those of them that take part in this step."""
        return self._learners(challengers=self.trials.attending)

    def _freeze(self, now: Now) -> list[Event]:
        """Keep a copy of the champion when event time reaches `freeze_at_ms`, with the champion's record."""
        if self.frozen is not None or self._freeze_at_ms is None or now.event_ms < self._freeze_at_ms:
            return []
        champion = self.champion
        self.frozen = champion.clone(champion.lineage)
        self._measured.windows.copy("champion", "frozen")
        reason = f"{champion.lineage} is kept as it is after {self.examples:,} examples, to compare"
        return [self._decision("freeze", champion.lineage, reason, {"examples": self.examples}, now)]

    def _score(self, batch: Batch) -> dict[str, Scores]:
        """Scores [n] of every arm: learners by lineage, and "frozen"."""
        scores = {arm.lineage: arm.score(batch.numbers, batch.categories) for arm in self._present()}
        if self.frozen is not None:
            scores["frozen"] = self.frozen.score(batch.numbers, batch.categories)
        return scores

    def _measure(self, batch: Batch, scores: Mapping[str, Scores], now: Now) -> list[Event]:
        """Update the rolling metrics; every `metrics_every` examples, a row for each arm."""
        self._measured.add(
            batch, scores, self.champion.lineage, trial=bool(self.challengers) and self.trials.attending
        )
        due = self.examples // self._metrics_every
        self.examples += len(batch)
        if self.examples // self._metrics_every == due:
            return []
        continuous = FIRST if self.continuous is not None or self.champion.lineage == FIRST else ""
        arms = arms_of(self.champion.lineage, continuous, self.frozen, self.challengers)
        return [*self._measured.rows(arms, now)]

    def _detect(self, batch: Batch, score: Scores, loss: Losses, served: Losses) -> list[Alert]:
        """Alerts on inputs and the champion's scores, and on the loss of what users got.

        That is the served score, or the champion's where none was served in time. Labels that come days late find
        served scores as wrong as they were all that time; the champion's recover with the first of them.
        """
        batch = self._freshness.fresh(batch, self.champion.version)
        watched = np.where(self._schema.target.known(batch.served), served, loss)
        return self._detectors.update(batch, score, watched, self.champion.version, episode=self._episode)

    def _judge(self, seen: Seen, now: Now) -> list[Event]:
        """The tests of the challengers, and what their verdicts ask for."""
        decided, winner = self.trials.judge(seen, self.champion.lineage, now)
        if winner is not None:
            return [*decided, *self._promote(winner, now)]
        self._forget()
        return [*decided]

    def _watch(self, seen: Seen, now: Now) -> list[Event]:
        """The newest swap's guard: the champion goes, or stays for good once the window is over."""
        if (guard := self.guard) is None:
            return []
        guard.update(seen.batch.label, seen.scores, seen.losses, seen.about)
        if reason := guard.reason:
            return self.roll_back(reason, guard.evidence(), now)
        if not guard.passed:
            return []
        self.guard = None
        return [self._decision("confirm", guard.lineage, guard.held, guard.evidence(), now)]

    def roll_back(
        self, reason: str, evidence: Mapping[str, Any], now: Now, good: Trainer | None = None
    ) -> list[Event]:
        """Put `good`, or else what the guard kept, in the champion's place. ValueError without either.

        Challengers retire, since they were compared with, or copied from, what goes, and nothing starts from it again.
        """
        good = good or (self.guard.former if self.guard else None)
        if good is None:
            raise ValueError(f"{self.champion.lineage} replaced nothing that could be put back")
        bad = self.champion.lineage
        why = f"{bad} goes, {good.lineage} is back: {reason}"
        events: list[Event] = [self._decision("rollback", good.lineage, why, dict(evidence), now)]
        events += self.trials.rolled_back(bad, self.examples, now)
        self.guard = None
        self.continuous = None if self.continuous is good else self.continuous
        self._crown(good)
        return events

    def dismiss(self, lineage: str, why: str, now: Now) -> list[Event]:
        """End a challenger's trial for what was found outside of the arena. KeyError if it is not on trial."""
        decided = self.trials.dismiss(lineage, self.champion.lineage, now, why)
        self._forget()
        return [decided]

    def approve(self, lineage: str, event_ms: int, created_ms: int) -> list[Event]:
        """A person promotes a challenger on trial, whatever its test says. KeyError if it is not on trial."""
        return self._promote(self.trials.named(lineage), Now(event_ms, created_ms), "promoted by a person")

    def arm(self, lineage: str) -> Trainer:
        """A model that learns, by its lineage. KeyError for others."""
        return {arm.lineage: arm for arm in self._learners(challengers=True)}[lineage]

    def _promote(self, winner: Challenger, now: Now, why: str = "") -> list[Event]:
        """The winner becomes the champion, or a canary first where the task wants one; all others retire."""
        former = self.champion
        if self._guarding.canary and winner.canary is None:
            return [*self.trials.let_serve(winner, former.lineage, now, why)]
        events: list[Event] = [self._decisions.about("promote", winner, former.lineage, now, why)]
        events += self.trials.retire(former.lineage, now, f"{winner.lineage} won", but=winner)
        if self._guarding.events:  # a champion that was still being watched is not what one would go back to
            good = self.guard.former if self.guard else former
            harm, episode = self._harm(self._guarding.alpha / BETS), self.trials.episode_of(winner)
            self.guard = Guard(self._guarding, winner.lineage, good, harm, episode)
        if former.lineage == FIRST and self._drift.keep_reference:
            self.continuous = former
        self._crown(winner.trainer)
        return events

    def _crown(self, champion: Trainer) -> None:
        """A model is the champion from now on; the detectors begin anew."""
        self.champion = champion
        self._detectors.swapped()
        self._forget()

    def _forget(self) -> None:
        """Drop the metrics of arms that are gone."""
        lineages = {arm.lineage for arm in self._learners(challengers=True)}
        trial = {TRIAL} if self.challengers else set()
        self._measured.windows.keep(lineages | trial | {"served", "champion", "frozen"})

    def _learn(self, batch: Batch, lesson: Batch) -> list[Alert]:
        """All learning arms learn what may be learned, `lesson`; the buffer keeps it for a fresh challenger."""
        self._buffer.add(lesson)
        for arm in self._present():
            arm.train(lesson)
            self.trials.rehearse(arm, self._buffer, lesson)
        arms = self._learners(challengers=True)
        return self._rejected.update(batch, arms, self.champion.version, self.examples)

    def _start(self, alerts: Sequence[Alert], now: Now) -> list[Event]:
        """Challengers, where an alert or the policy asks for them; and one that was tuned, if it waits."""
        return [*self.trials.start(alerts, self.champion, self._buffer, self.examples, now)]

    def born(self, config: ModelConfig, seed: int) -> str:
        """The name of the next lineage, whose settings and seed are kept from now on."""
        return self.trials.entrants.born(config, seed)

    def _decision(
        self, action: Action, lineage: str, reason: str, facts: dict[str, Any], now: Now
    ) -> Decision:
        return self._decisions.plain(action, lineage, self.champion.lineage, reason, facts, now)

    def state(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Everything: files, and a record ready for JSON. After `load` an arena goes on exactly as here."""
        arms = {arm.lineage: arm for arm in self._learners(challengers=True)}
        if self.frozen is not None:
            arms["frozen"] = self.frozen
        files = {
            name: data for key in arms for name, data in prefixed(f"arms/{key}", arms[key].state()).items()
        }
        others, trials = self.trials.state()
        tuned, tuning = self.tuning.state() if self.tuning else ({}, None)
        files |= others | prefixed("tuning", tuned)
        files |= {name: pack(each.state()) for name, each in self._packed.items()}
        return files, {
            "champion": self.champion.lineage,
            "continuous": None if self.continuous is None else self.continuous.lineage,
            "frozen": self.frozen is not None,
            "guard": None if self.guard is None else self.guard.state(),
            "trials": trials,
            "tuning": tuning,
            "budget": self.budget.state(),
            "rejected": self._rejected.state(),
            "judged": self._judged.state(),
            "counts": [self.examples, self._decisions.made],
        }

    def load(self, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
        """The inverse of `state`, for an arena made with the same settings.

        Raises ValueError if the state belongs to another schema, with this arena unchanged.
        """

        @cache  # an arm may be in two places
        def arm(key: str) -> Trainer:
            trainer = Trainer(self._schema, self.settings[0], self._seed, key, self._device)
            trainer.load(part(f"arms/{key}", files))
            return trainer

        champion = arm(record["champion"])
        continuous = arm(record["continuous"]) if record["continuous"] else None
        frozen = arm("frozen") if record["frozen"] else None
        guarding = record.get("guard")
        harm = self._harm(self._guarding.alpha / BETS)
        guard = Guard.restored(self._guarding, guarding, arm(guarding["former"]), harm) if guarding else None
        if self.tuning is not None and record["tuning"] is not None:
            self.tuning.load(part("tuning", files), record["tuning"])
        self.trials.load(files, record["trials"], arm)
        self.budget.load(record["budget"])
        self.champion, self.continuous = champion, continuous
        self.frozen, self.guard = frozen, guard
        for name, each in self._packed.items():
            each.load(unpack(files[name]))
        self._rejected.load(record["rejected"])
        self._judged.load(record["judged"])
        self.examples, self._decisions.made = record["counts"]

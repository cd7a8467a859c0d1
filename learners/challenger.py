"""A challenger on trial, and the decision about it: one row with the evidence and the reason in words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from learners.batch import ModelConfig
from learners.canary import CanaryTest, Floats
from learners.prequential import Prequential
from learners.segments import NO_SEGMENTS, Segmented, Segments
from learners.space import LEARNING
from learners.trainer import Trainer
from learners.verdict import PairedTest, Verdict

Arms = NDArray[np.int32]

Action = Literal[
    "freeze", "start", "canary", "promote", "recommend", "reject", "expire", "retire", "confirm", "rollback", "refuse",
    "straggle", "decline", "tune",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Now:
    """When a step happens: event time of its newest example, and the caller's clock."""

    event_ms: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about a lineage, and the evidence for it. Every decision is one row of the history.

    `action` is freeze (a copy of the champion was kept as it is, to compare), start (a challenger was
    started), canary (it serves a share of the entities), promote (it is the champion now), recommend (it is better,
    but the policy leaves the rest to a person), reject (it is worse, or fails a guardrail), expire (it was on trial for
    max_events) or retire (another one won). After a swap: confirm (its guard ended well), rollback (this lineage is
    back), refuse (a worker did not take the model), straggle (a worker does not have it yet), decline (what a person
    asked for cannot be done). And tune (a rung of a population of settings ended).
    """

    decision_id: str  # stable: the same stream gives the same id after a restart
    action: Action
    lineage: str
    champion: str  # the champion when it was decided; for a promotion or rollback, the one that was replaced
    reason: str
    evidence: dict[str, Any]  # ready for JSON; what is undefined is None
    event_ms: int
    created_ms: int


@dataclass(slots=True)
class Challenger:
    """A model on trial: how it was made ("warm", "fresh", "past" or "tuned"), after what, and the tests it is in.

    It must be better over all, in no large segment worse than it may be (`learners.segments`), and, where some entities
    are held out (`learners.trust`), better on them too.
    """

    trainer: Trainer
    kind: str
    alert_id: str
    test: PairedTest
    recommended: bool = False
    segments: Segments = field(default_factory=lambda: Segments((), 0.0, 0.5))
    copied: bool = False  # from the champion, when it was started
    holdout: PairedTest | None = None
    canary: CanaryTest | None = None  # while it serves a share of the entities

    def update(
        self,
        champion: Floats,
        own: Floats,
        about: Segmented = NO_SEGMENTS,
        held: NDArray[np.bool_] | None = None,
        arm: Arms | None = None,
        served: Floats | None = None,
    ) -> None:
        """Losses [n] of both on a step that neither had learned from, its segments, and the rows held out [n]; the arm
        [n] of a canary that served each row, and the losses [n] of what was served.
        """
        self.test.update(champion, own)
        if self.holdout is not None and held is not None:
            self.holdout.update(champion[held], own[held])
        self.segments.update(about, champion, own)
        if self.canary is not None and arm is not None and served is not None:
            self.canary.update(arm, served, champion)

    @property
    def verdict(self) -> Verdict:
        """As `PairedTest.verdict`: harm in a large segment rejects, and what may still be harm waits."""
        if self.segments.harmed:
            return "reject"
        verdict = self.test.verdict
        if self.canary is not None:
            return "reject" if verdict == "reject" else self.canary.verdict
        waits = self.segments.unproven or self.unconfirmed
        return "undecided" if verdict == "promote" and waits else verdict

    @property
    def unconfirmed(self) -> bool:
        """Whether it is still to be shown that it is better on what is held out."""
        return self.holdout is not None and self.holdout.verdict != "promote"

    @property
    def lineage(self) -> str:
        """The name of its lineage."""
        return self.trainer.lineage

    def record(self) -> dict[str, Any]:
        """All but the model, ready for JSON."""
        return {
            "lineage": self.lineage,
            "kind": self.kind,
            "alert_id": self.alert_id,
            "recommended": self.recommended,
            "copied": self.copied,
            "test": self.test.state(),
            "segments": self.segments.state(),
            "holdout": None if self.holdout is None else self.holdout.state(),
            "canary": None if self.canary is None else self.canary.state(),
        }

    @classmethod
    def restored(
        cls,
        trainer: Trainer,
        test: PairedTest,
        segments: Segments,
        holdout: PairedTest | None,
        record: Mapping[str, Any],
        canary: CanaryTest | None = None,
    ) -> Self:
        """The inverse of `record`, with the model, and tests that have only their settings."""
        test.load(record["test"])
        segments.load(record["segments"])
        if holdout is not None and record["holdout"]:
            holdout.load(record["holdout"])
        kind, alert_id, recommended = record["kind"], record["alert_id"], record["recommended"]
        made = cls(trainer, kind, alert_id, test, recommended, segments, record["copied"], holdout)
        if canary is not None and record["canary"] is not None:
            canary.load(record["canary"])
            made.canary = canary
        return made


def other_settings(champion: ModelConfig, standing: ModelConfig, challenging: ModelConfig) -> ModelConfig:
    """The champion's shape with the way to learn that it does not use.

    `standing` and `challenging` are the champion's and the challenger's sections of the task.
    """
    other = standing if champion.learning_rate == challenging.learning_rate else challenging
    return replace(champion, **{name: getattr(other, name) for name in LEARNING})


def evidence(challenger: Challenger, champion: str, windows: Prequential) -> dict[str, Any]:
    """What the test knows, ready for JSON, with the metrics of both on its events, as far as the windows have them."""
    test, target = challenger.test, challenger.trainer.schema.target
    champion_loss, challenger_loss = test.losses
    values: dict[str, Any] = {
        "alert_id": challenger.alert_id,
        "kind": challenger.kind,
        "alpha": test.alpha,
        "min_effect": test.min_effect,
        "e_value": test.e_value,
        "e_value_worse": test.e_value_worse,
        "n": test.count,
        "mean_difference": champion_loss - challenger_loss,
        f"champion_{target.loss_name}": champion_loss,
        f"challenger_{target.loss_name}": challenger_loss,
        "segments": challenger.segments.evidence(),
        "holdout": None if challenger.holdout is None else _holdout_evidence(challenger.holdout),
        "canary": None if challenger.canary is None else challenger.canary.evidence(),
    }
    for arm, lineage in (("champion", champion), ("challenger", challenger.lineage)):
        row = windows.row(lineage, test.count)
        values |= {f"{arm}_{name}": row[name] for name in target.metrics[:2]}
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }


def _holdout_evidence(test: PairedTest) -> dict[str, float | None]:
    difference = test.losses[0] - test.losses[1] if test.count else None
    return {"n": test.count, "mean_difference": difference, "e_value": test.e_value}


def reason(action: Action, challenger: Challenger, champion: str, why: str) -> str:
    """The decision in words. `why` stands in for the numbers of the test where these are not the reason."""
    test = challenger.test
    name = f"{challenger.lineage} ({challenger.kind}, after {challenger.alert_id})"
    if why:
        return f"{name}: {why}"
    words, (champion_loss, challenger_loss) = challenger.trainer.schema.target.loss_words, test.losses
    numbers = (
        f"{words} {challenger_loss:.4f} against {champion_loss:.4f} of {champion} "
        f"on {test.count:,} examples that neither had learned from"
    )
    needed = f"of {1.0 / test.alpha:.3g} needed"
    if action == "reject" and (harmed := challenger.segments.harmed):
        return f"{name} does harm {harmed}; over all, {numbers}"
    if challenger.canary is not None and (said := _of_canary(action, name, challenger.canary)):
        return said
    if action == "expire" and test.verdict == "promote" and (unproven := challenger.segments.unproven):
        return f"{name} is better, but it is not shown that it does no harm {unproven}; over all, {numbers}"
    if action == "expire" and test.verdict == "promote" and challenger.unconfirmed:
        return f"{name} is better over all, but not on what is held out; over all, {numbers}"
    match action:
        case "promote":
            return f"{name} is better: {numbers}, e-value {test.e_value:.3g} {needed}"
        case "canary":
            return (
                f"{name} serves a share of the entities now: {numbers}, e-value {test.e_value:.3g} {needed}"
            )
        case "recommend":
            return f"{name} is better and waits for a person: {numbers}, e-value {test.e_value:.3g} {needed}"
        case "reject":
            return f"{name} is worse: {numbers}, e-value {test.e_value_worse:.3g} {needed}"
        case _ if challenger.recommended:
            return f"{name} was better, but nobody promoted it: {numbers}"
        case _:
            return f"{name} was not clearly better: {numbers}, e-value {test.e_value:.3g} {needed}"


def _of_canary(action: Action, name: str, canary: CanaryTest) -> str:
    """What a canary's arm decided, in words; "" for what it did not."""
    match action:
        case "promote":
            return f"{name} does no harm where it serves: {canary.told}"
        case "reject" if canary.verdict == "reject":
            return f"{name} does harm where it serves: {canary.told}"
        case "expire":
            return f"it is not shown that {name} does no harm where it serves: {canary.told}"
    return ""

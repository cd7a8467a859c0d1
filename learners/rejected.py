"""An alert when steps of learning are rejected: something in them was not finite, and a model stands still."""

from collections.abc import Mapping, Sequence
from typing import Any

from learners.batch import Batch
from learners.drift import Alert
from learners.trainer import Trainer

DETECTOR = "rejected_steps"


class RejectedSteps:
    """One alert a lineage for the steps that it rejected; then silent for `cooldown` examples, and one for all since.

    It starts no challenger: what cannot be learned by one model is seldom learned by its copy.
    """

    def __init__(self, cooldown: int) -> None:
        self._cooldown = cooldown
        self._told: dict[
            str, tuple[int, int]
        ] = {}  # lineage → steps that were told of, examples until which it is silent

    def update(self, batch: Batch, arms: Sequence[Trainer], version: str, examples: int) -> list[Alert]:
        """The alerts after all arms learned a batch; `examples` were observed so far, this batch too."""
        told = {arm.lineage: self._told.get(arm.lineage, (0, 0)) for arm in arms}
        alerts = []
        for arm in arms:
            before, quiet_until = told[arm.lineage]
            if arm.rejected_steps > before and examples >= quiet_until:
                alerts.append(_alert(batch, arm, arm.rejected_steps - before, version, examples))
                told[arm.lineage] = (arm.rejected_steps, examples + self._cooldown)
        self._told = told
        return alerts

    def state(self) -> dict[str, list[int]]:
        """What was told, ready for JSON."""
        return {lineage: list(each) for lineage, each in self._told.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._told = {lineage: (int(told), int(until)) for lineage, (told, until) in state.items()}


def _alert(batch: Batch, arm: Trainer, steps: int, version: str, examples: int) -> Alert:
    many = "a step" if steps == 1 else f"{steps} steps"
    return Alert(
        alert_id=f"{DETECTOR}-{arm.lineage}-{examples}",
        detector=DETECTOR,
        level="step",
        subject=arm.lineage,
        strength=float(steps),
        threshold=0.0,
        since_event_id=batch.event_ids[0],
        since_ms=int(batch.event_ms[0]),
        event_ms=int(batch.event_ms.max()),
        version=version,
        message=f"{arm.lineage} rejected {many}, which changed nothing: a loss, gradient or weight was not finite. "
        "Lower learning_rate or clip_norm, or look for numbers that are far too large",
    )

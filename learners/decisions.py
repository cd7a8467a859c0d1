"""Decisions of an arena: each has a number, the reason in words, and its evidence."""

from typing import Any

from learners import challenger as trial
from learners.challenger import Action, Challenger, Decision, Now
from learners.measure import TRIAL, Measure


class Decisions:
    """Numbers them as they are made, so that the same stream gives the same ids after a restart."""

    def __init__(self, measured: Measure) -> None:
        self._measured = measured
        self.made = 0

    def about(
        self, action: Action, challenger: Challenger, champion: str, now: Now, why: str = ""
    ) -> Decision:
        """One about a challenger, with the metrics of both sides on the events of the test.

        `champion` is a lineage; `why` stands in for the test's numbers where these are not the reason.
        """
        reason = trial.reason(action, challenger, champion, why)
        facts = trial.evidence(challenger, TRIAL, self._measured.windows)
        return self.plain(action, challenger.lineage, champion, reason, facts, now)

    def plain(
        self, action: Action, lineage: str, champion: str, reason: str, facts: dict[str, Any], now: Now
    ) -> Decision:
        """One with a reason and evidence of its own."""
        self.made += 1
        decision_id = f"{self.made}-{action}-{lineage}"
        return Decision(decision_id, action, lineage, champion, reason, facts, now.event_ms, now.created_ms)

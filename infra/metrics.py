"""What a process counts of itself, and the one list of names it may use."""

from collections.abc import Mapping

# name: what it is, with its unit. A counter ends in _total and only grows; the others are the latest value.
NAMES: Mapping[str, str] = {
    # serve
    "events_total": "events read from the events topic, good and bad",
    "predictions_total": "predictions committed to the predictions topic",
    "dead_letters_total": "records sent to the dead-letters topic",
    "duplicates_total": "events dropped because their id was seen already",
    "late_total": "events older than the watermark",
    "transactions_total": "Kafka transactions committed",
    "batch_events": "events in the latest transaction",
    "snapshots_total": "snapshots of feature state written",
    "snapshots_failed_total": "snapshots or checkpoints that could not be written",
    "online_rows_total": "feature rows written to Feast's online store",
    "online_failed_total": "failed writes to Feast's online store",
    "online_staleness_ms": "milliseconds that the oldest row of the latest write to the online store waited for it",
    # join and learn
    "labels_total": "labels read",
    "examples_total": "labelled rows sent to the learner",
    "joined_total": "examples that were joined with a label in time",
    "defaulted_total": "examples that were given the value for a missing label",
    "unlabelled_total": "examples without a label in time, in a task that drops them",
    "corrected_total": "late labels that corrected the value for a missing one",
    "late_labels_total": "late labels that changed nothing",
    "duplicate_labels_total": "further labels of an event that say what the first one says",
    "contradicting_labels_total": "further labels of an event that say something else; they are set aside",
    "orphan_labels_total": "labels without an event; they are set aside",
    "labels_behind_ms": "milliseconds for which windows of one partition have been held open for labels on their way",
    "remembered": "event ids that one partition of the join remembers, waiting or decided",
    "spilled": "those of them that are on disk",
    "trained_total": "examples trained on",
    "champion_work_ms_total": "milliseconds of the champion's work, as learners/work.py estimates it",
    "beside_work_ms_total": "the same by models beside it: challengers, the tuned population, replaced champions",
    "tuning_work_ms_total": "that of the tuned population",
    "arena_budget": "share of all that work which models beside the champion may take in the long run",
    "passed_over_total": "examples that challengers did not score and learn since the budget had no credit",
    "damaged_total": "labelled records that could not be read, or were made for another version of the task file",
    "refreshes_total": "refreshes of the live lineage sent or applied",
    "swaps_total": "swaps to another lineage sent or applied",
    "rejected_updates_total": "model updates that failed verification",
    "staleness_ms": "milliseconds from the making of the latest model update to its first use",
    "learned_age_ms": "milliseconds from the newest event that the latest model update learned of to its first use",
}


class Metrics:
    """Numbers by name, in memory; one object a process, passed to whoever counts. Unknown names are errors."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def count(self, name: str, by: float = 1) -> None:
        """Add to a counter."""
        if not name.endswith("_total"):
            raise ValueError(f"{name} is no counter")
        self._values[_known(name)] = self._values.get(name, 0) + by

    def note(self, name: str, value: float) -> None:
        """Keep the latest value."""
        if name.endswith("_total"):
            raise ValueError(f"{name} is a counter")
        self._values[_known(name)] = value

    def snapshot(self) -> dict[str, float]:
        """A copy of what was counted and noted so far, in the order of NAMES."""
        return {name: self._values[name] for name in NAMES if name in self._values}


def _known(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{name} is not in infra.metrics.NAMES")
    return name

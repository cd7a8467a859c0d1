"""The topics of a task: their names, partitions and settings, in one place."""

from dataclasses import dataclass

from streams.task import Task

MAX_RECORD_BYTES = 16 << 20
"""Largest record of any topic, in bytes: a 10 MB event must reach us to be refused with a reason."""

_HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Topics:
    """Topic names of one task. In: events, labels. Out: predictions, drift_alerts, audit, metrics, dead_letters."""

    task: str
    entities: tuple[str, ...]
    feedback_entities: tuple[str, ...]

    @classmethod
    def of(cls, task: Task) -> "Topics":
        """The topics that `task` needs: one re-keyed topic for each entity after the key's own."""
        fed = tuple(name for name, view in task.views.items() if view.needs_labels)
        return cls(task.name, tuple(e.name for e in task.entities), fed)

    @property
    def events(self) -> str:
        """Events from producers, keyed by the key's entity."""
        return f"{self.task}.events"

    @property
    def labels(self) -> str:
        """Labels from producers."""
        return f"{self.task}.labels"

    @property
    def examples(self) -> str:
        """The join's one log: features exactly as served, and the labels, both placed by event id."""
        return f"{self.task}.examples"

    @property
    def labelled(self) -> str:
        """Examples with their labels: the learner's only input."""
        return f"{self.task}.labelled"

    @property
    def predictions(self) -> str:
        """The answers."""
        return f"{self.task}.predictions"

    @property
    def model_updates(self) -> str:
        """Refreshes and swaps, from the learner to serving."""
        return f"{self.task}.model-updates"

    @property
    def drift_alerts(self) -> str:
        """Alarms of the detectors."""
        return f"{self.task}.drift-alerts"

    @property
    def audit(self) -> str:
        """Decisions about models, with their evidence."""
        return f"{self.task}.audit"

    @property
    def metrics(self) -> str:
        """Evaluations of every arm."""
        return f"{self.task}.metrics"

    @property
    def feature_drift(self) -> str:
        """How far each watched column has moved."""
        return f"{self.task}.feature-drift"

    @property
    def dead_letters(self) -> str:
        """Records that could not be used, as they came."""
        return f"{self.task}.dead-letters"

    def stage(self, index: int) -> str:
        """The log that serve stage `index` folds: events for 0, then one re-keyed topic an entity."""
        return self.events if index == 0 else f"{self.task}.by-{self.entities[index]}"

    def feedback(self, entity: str) -> str:
        """Labels on their way back into the label rates of `entity`."""
        return f"{self.task}.feedback-{entity}"

    def layout(self, partitions: int) -> dict[str, tuple[int, dict[str, str]]]:
        """Name → (partitions, topic settings) of every topic, for `infra.kafka.create_topics`."""
        big = {"max.message.bytes": str(MAX_RECORD_BYTES)}
        wide = [self.events, self.labels, self.examples, self.labelled, self.predictions, self.dead_letters]
        wide += [self.stage(i) for i in range(1, len(self.entities))]
        wide += [self.feedback(entity) for entity in self.feedback_entities]
        layout = dict.fromkeys(wide, (partitions, big))
        layout[self.model_updates] = (1, big | {"retention.ms": str(_HOUR_MS)})
        layout |= {
            name: (1, {}) for name in (self.drift_alerts, self.audit, self.metrics, self.feature_drift)
        }
        return layout

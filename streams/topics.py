"""The topics of a task: their names, partitions and settings, in one place."""

from dataclasses import dataclass

from streams.task import Task

MAX_RECORD_BYTES = 16 << 20
"""Largest record of any topic, in bytes: a 10 MB event must reach us to be refused with a reason."""

META = "meta"
"""Header of a record of the model updates: what the model in its value is, as JSON."""

PART = "part"
"""Header of a record that has a part of an update, as JSON: see `streams.parts`."""

_HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Topics:
    """Topic names of one task. In: events, labels. Out: predictions, drift_alerts, audit, metrics, dead_letters.

    The task file may name the first and the last ones itself, `[topics]`; all others begin with the task's name.
    """

    task: str
    entities: tuple[str, ...]
    feedback_entities: tuple[str, ...]
    events: str
    labels: str
    predictions: str
    drift_alerts: str
    dead_letters: str

    @classmethod
    def of(cls, task: Task) -> "Topics":
        """The topics that `task` needs: one re-keyed topic for each entity after the key's own."""
        fed = tuple(name for name, view in task.views.items() if view.needs_labels)
        own = task.topics
        return cls(
            task.name,
            tuple(e.name for e in task.entities),
            fed,
            events=own.events or f"{task.name}.events",
            labels=own.labels or f"{task.name}.labels",
            predictions=own.predictions or f"{task.name}.predictions",
            drift_alerts=own.drift_alerts or f"{task.name}.drift-alerts",
            dead_letters=own.dead_letters or f"{task.name}.dead-letters",
        )

    def group(self, role: str) -> str:
        """The consumer group of a role: serve, join, archive, or learn, which only tells there how far it is."""
        return f"driftline-{self.task}-{role}"

    @property
    def examples(self) -> str:
        """The join's one log: features exactly as served, and the labels, both placed by event id."""
        return f"{self.task}.examples"

    @property
    def labelled(self) -> str:
        """Examples with their label: the learner's only input."""
        return f"{self.task}.labelled"

    @property
    def model_updates(self) -> str:
        """Refreshes and swaps, from the learner to the serve workers."""
        return f"{self.task}.model-updates"

    @property
    def audit(self) -> str:
        """Decisions about models, each with its evidence."""
        return f"{self.task}.audit"

    @property
    def metrics(self) -> str:
        """How well each model does, on labelled events."""
        return f"{self.task}.metrics"

    @property
    def feature_drift(self) -> str:
        """How far each watched column has moved."""
        return f"{self.task}.feature-drift"

    @property
    def workers(self) -> str:
        """What each serve worker runs, took and refused, for the learner."""
        return f"{self.task}.workers"

    @property
    def commands(self) -> str:
        """What people ask the learner to do: roll back, promote."""
        return f"{self.task}.commands"

    @property
    def internal(self) -> tuple[str, ...]:
        """Topics whose names are not the task file's to choose."""
        staged = [self.stage(i) for i in range(1, len(self.entities))]
        fed = [self.feedback(entity) for entity in self.feedback_entities]
        learned = (self.model_updates, self.audit, self.metrics, self.feature_drift)
        own = (self.examples, self.labelled, *learned, self.workers, self.commands)
        return (*own, *staged, *fed)

    @property
    def may_be_wider(self) -> frozenset[str]:
        """Topics that may have other partition counts than Driftline asks for.

        Labels are read from any number of partitions; of the others some are then not written to, which does no harm.
        """
        return frozenset((self.labels, self.predictions, self.drift_alerts, self.dead_letters))

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
        layout[self.workers] = (1, {"retention.ms": str(_HOUR_MS)})
        layout[self.commands] = (1, {})
        layout |= {
            name: (1, {}) for name in (self.drift_alerts, self.audit, self.metrics, self.feature_drift)
        }
        return layout

"""What a task needs in Kafka before its first worker starts."""

from dataclasses import replace

from infra.errors import UserError
from infra.kafka import create_topics
from infra.settings import Settings
from streams.task import Task
from streams.topics import Topics


def prepare(task: Task, settings: Settings) -> Settings:
    """Make the task's topics where they are missing; the settings with the partition count that is in force.

    An events topic that is already there decides how many partitions all the others get.
    """
    topics = Topics.of(task)
    layout = topics.layout(settings.partitions)
    partitions = create_topics(settings.kafka, {topics.events: layout[topics.events]})[topics.events]
    layout = topics.layout(partitions)
    for name, found in create_topics(settings.kafka, layout).items():
        wanted = layout[name][0]
        if found == wanted or name == topics.labels or (found > wanted and name in topics.may_be_wider):
            continue
        raise UserError(
            f"topic {name} has {found} partitions, and {wanted} are needed beside {topics.events}",
            f"make {name} with {wanted} partitions, or delete it and Driftline makes it",
        )
    return replace(settings, partitions=partitions)

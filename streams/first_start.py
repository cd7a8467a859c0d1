"""Beside the broker's start: `python -m streams.first_start TASK` does once what every role would do for itself.

It registers the task's features with Feast. On a fresh installation, which has neither byte code nor compiled kernels,
it makes both too: left to themselves, the five processes would all make all of it at the same time.
"""

import sys
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from featurestore.repository import FeatureWriter
from infra.metrics import Metrics
from infra.settings import Settings, this_worker
from streams.task import Task, load_task


def is_first() -> bool:
    """Whether the roles have not run with this Python yet: torch has no byte code."""
    spec = find_spec("torch")
    return spec is None or spec.origin is None or not Path(cache_from_source(spec.origin)).exists()


def main(name: str) -> None:
    """Do it; raises UserError."""
    first = is_first()
    task, (_, settings) = load_task(name), this_worker()
    FeatureWriter(settings.data, settings.online, task.name, task.views, settings.archive).apply()
    if first:
        _import_and_compile(task, settings)


def _import_and_compile(task: Task, settings: Settings) -> None:
    import chdb  # noqa: F401
    import river.drift  # noqa: F401

    import streams.learn
    import streams.roles  # noqa: F401
    from learners.trainer import warm_up as warm_up_steps
    from streams.live import LiveModel
    from streams.serve import warm_up

    warm_up(task, LiveModel(task, settings, "first start", Metrics()))
    warm_up_steps(task.schema, *task.trained)


if __name__ == "__main__":
    main(sys.argv[1])

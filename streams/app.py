"""The Faust app of a worker, as `faust -A streams.app worker` wants it: role and task come from the environment.

DRIFTLINE_ROLE=serve DRIFTLINE_TASK=clicks DRIFTLINE_KAFKA=localhost:9092 faust -A streams.app worker
"""

import sys

from infra.errors import UserError
from infra.settings import this_worker
from streams.roles import APPS
from streams.task import load_task


def _app_from_env() -> object:
    worker, settings = this_worker()
    if worker.role not in APPS:
        raise UserError(f"DRIFTLINE_ROLE is {worker.role!r}", f"use one of {', '.join(APPS)}")
    if not settings.kafka:
        raise UserError("DRIFTLINE_KAFKA is not set", "give a broker's host:port, or run `driftline up`")
    return APPS[worker.role](load_task(worker.task), settings)


try:
    app = _app_from_env()
except UserError as error:
    print(error, file=sys.stderr)
    raise SystemExit(1) from None

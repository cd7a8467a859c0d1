"""Runs a Faust app as this process's only business, with one plain log line a fact."""

import gc
import logging
from logging.config import dictConfig
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import faust

log = logging.getLogger(__name__)
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": LINE}},
    "handlers": {"err": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["err"]},
    "loggers": {
        **{name: {"level": "INFO"} for name in ("streams", "learners", "featurestore", "infra")},
        "streams.transport": {"level": "WARNING"},  # Faust tells of every start and stop of our consumer
    },
}


def log_plainly() -> None:
    """Our own facts from INFO up, everyone else's from WARNING up, to standard error."""
    dictConfig(LOGGING)
    logging.captureWarnings(capture=True)


def run_worker(app: "faust.App") -> None:
    """Run until SIGTERM or Ctrl-C, then leave the group cleanly; raises SystemExit."""
    # The learner, which only logs as workers do, starts without Faust.
    from aiokafka.errors import KafkaConnectionError
    from faust.worker import Worker

    from streams.partitions import EXIT_AGAIN, end

    class Promptly(Worker):
        async def start(self) -> None:
            try:
                await super().start()
            except KafkaConnectionError as error:  # it was there a moment ago, when the topics were looked at
                log.critical("Kafka has gone (%s); the worker ends and starts again", error)
                end(EXIT_AGAIN)

        async def _sentinel_task(self) -> None:
            """Faust's would sleep for a second here, when everything has ended, and whoever stops a role waits."""

    worker = Promptly(app, quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None  # an animation has no place in a log file
    _spare_collector()
    worker.execute_from_commandline()


def _spare_collector() -> None:
    """Let the garbage collector forget what is loaded, and look less often.

    A batch makes tens of thousands of small objects that no cycle holds; at the usual threshold the collector would
    walk all of torch and Feast for them again and again (a third of the time per event, see docs/log.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)

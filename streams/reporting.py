"""What a role tells of itself while it runs: a line in its log every half minute, and Prometheus metrics where wanted.

Under `driftline up` each role has a port of its own. `targets` notes all of them in `<data>/metrics.json`, in the form
in which Prometheus reads targets from a file (`file_sd_configs`).
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.errors import UserError
from infra.metrics import Metrics
from infra.ports import HOST, can_listen
from infra.settings import Settings

log = logging.getLogger(__name__)
TARGETS = "metrics.json"
_EVERY_S = 30.0
_EVERYWHERE = ("0.0.0.0", "::")


def worker_name(settings: Settings) -> str:
    """The name of this worker: the one that it was given, or one that no other has."""
    return settings.worker or f"{socket.gethostname()}-{os.getpid()}"


def report(metrics: Metrics, settings: Settings, task: str, role: str) -> None:
    """Tell what is counted from now on, until the process ends."""
    if settings.metrics_at is not None:
        from infra.exporter import export

        labels = {"task": task, "role": role, "worker": worker_name(settings)}
        export(metrics, *settings.metrics_at, labels)
    threading.Thread(target=_log_counts, args=(metrics,), name="metrics", daemon=True).start()


def _log_counts(metrics: Metrics) -> None:
    while True:
        time.sleep(_EVERY_S)
        log.info("counted so far: %s", line(metrics))


def line(metrics: Metrics) -> str:
    """All that is counted, in one line; of a histogram the average."""
    values = [f"{name} {value:g}" for name, value in metrics.snapshot().items()]
    values += [f"{each.name} {each.sum / sum(each.counts):g} on average" for each in metrics.histograms()]
    return ", ".join(values)


def addresses(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """The address of each process's metrics, the ports one after the other; nothing where none are wanted.

    Raises UserError where one of them is taken.
    """
    if settings.metrics_at is None:
        return {}
    host, first = settings.metrics_at
    for port in range(first, first + len(names)):
        if port >= 1 << 16 or not can_listen(host, port):
            raise UserError(
                f"no metrics can be had at {host}:{port}: the port is taken, or not of this machine",
                f"set DRIFTLINE_METRICS to HOST:PORT with {len(names)} free ports from PORT on, or to nothing",
            )
    shown = f"[{host}]" if ":" in host else host
    return {name: f"{shown}:{first + place}" for place, name in enumerate(names)}


@contextmanager
def targets(data: Path, found: Mapping[str, str]) -> Iterator[str]:
    """Keep the note of where the metrics are while the body runs. Yields a sentence for the user."""
    path = data / TARGETS
    local = {name: _from_here(address) for name, address in found.items()}
    path.write_text(json.dumps([{"targets": [address]} for address in local.values()]) + "\n")
    try:
        where = ", ".join(f"{name} http://{address}/metrics" for name, address in local.items())
        yield f"metrics for Prometheus (targets in {path}): {where}"
    finally:
        path.unlink(missing_ok=True)


def _from_here(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{HOST}:{port}" if host.strip("[]") in _EVERYWHERE else address

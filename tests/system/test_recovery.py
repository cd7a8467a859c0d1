"""Serve workers that come, go and crash while events stream in: nothing lost, nothing twice, the same features."""

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.system import run_support as runs
from tests.system.fault_support import (
    check_as_if_nothing_had_happened,
    check_one_prediction_each,
    make_stream,
)


def test_workers_come_go_and_crash_and_every_feature_is_as_if_nothing_had_happened(
    broker: Any, tmp_path: Path
) -> None:
    stream = make_stream(broker, tmp_path, "shared", 'snapshot_every = "1s"')
    with ExitStack() as stack:
        first = stream.worker(stack, "one")
        runs.await_serving(first, stream.task, broker.address)
        stream.send(500)
        second = stream.worker(stack, "two")
        stream.send_until_it_works(second)
        assert first.stop(signal.SIGTERM) == 0
        stream.send(500)
        third = stream.worker(stack, "three")
        stream.send_until_it_works(third)
        second.process.kill()
        stream.send(500)
        check_as_if_nothing_had_happened(stream)
        assert third.stop(signal.SIGTERM) == 0


def test_at_least_once_works_from_end_to_end(broker: Any, tmp_path: Path) -> None:
    stream = make_stream(broker, tmp_path, "least", 'guarantee = "at_least_once"')
    with ExitStack() as stack:
        worker = stream.worker(stack, "one")
        runs.await_serving(worker, stream.task, broker.address)
        stream.send(500)
        check_one_prediction_each(stream)
        assert worker.stop(signal.SIGTERM) == 0
    assert stream.task.serving.guarantee == "at_least_once"

"""Serve workers that die, stop and lose their disk at the worst moments, against a real broker.

Each test ends with the same check: every event has one prediction and one example under read_committed, with the
features of an undisturbed pass, bit for bit.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaAdminClient, TopicPartition

from infra.kafka import committed_offsets, read_all
from infra.settings import load_secret
from streams import wire
from streams.privacy import Pseudonymiser
from streams.stage import StagePartition
from tests.system import fault_support as faults

SAVING = 'snapshot_every = "200ms"'
ALL = 2 * faults.PARTITIONS  # partitions of both stages
AGAIN = 70  # how a worker ends that lost a partition to another one

# What happens to a worker, one line a life; see fault_worker.py. Both stages of a partition share a transaction.
DEATHS = {
    "one": [
        "kill begun serve 4",
        "kill half-sent serve 5",
        "kill sent serve 6",
        "kill offsets serve 4",
        "kill committing serve 5",
        "kill committed serve 6",
    ],
    "two": [
        "kill half-sent serve 6",
        "kill sent serve 4",
        "kill committed serve 5",
        "kill fenced serve 1",
        "kill replayed by-item 1",
        "kill draft disk 2",
    ],
}


def test_a_worker_may_die_at_every_step_of_the_commit_order(broker: Any, tmp_path: Path) -> None:
    stream = faults.make_stream(broker, tmp_path, "steps", SAVING)
    with ExitStack() as stack:
        workers = {name: stream.faulty(stack, name, deaths) for name, deaths in DEATHS.items()}
        count = sum(map(len, DEATHS.values()))
        stream.send_until(
            lambda: sum(len(faults.met(run)) for run in workers.values()) == count, *workers.values()
        )
        stream.send(200, rate=200)
        faults.check_as_if_nothing_had_happened(stream)
        for name, run in workers.items():
            assert run.stop(signal.SIGTERM) == 0
            for (action, pid, step, where), planned in zip(faults.met(run), DEATHS[name], strict=True):
                assert planned.split()[:2] == [action, step]
                assert planned.split()[2] in where
                assert f"life {pid} ended with {-signal.SIGKILL}" in run.output


def test_a_stopped_worker_that_is_let_go_after_its_end_was_noticed_writes_nothing(
    broker: Any, tmp_path: Path
) -> None:
    """One zombie wakes up before it added its offsets to the transaction, the other before its commit."""
    stream = faults.make_stream(broker, tmp_path, "zombies", SAVING)
    with ExitStack() as stack:
        zombies = [
            stream.faulty(stack, "one", ["stop sent serve 5"]),
            stream.faulty(stack, "two", ["stop offsets serve 5"]),
        ]
        heir = stream.faulty(stack, "heir")
        stream.send_until(lambda: all(faults.met(run) for run in zombies), *zombies)
        stream.send_until(lambda: faults.taken(heir, stream.topics.stage(1)) == {0, 1, 2, 3}, heir)
        faults.check_one_prediction_each(stream)
        before = faults.predicted(stream)
        for run in zombies:
            (_, pid, _, _), *_ = faults.met(run)
            os.kill(pid, signal.SIGCONT)
            run.wait_for(f"life {pid} ended with {AGAIN}")
            assert "the worker ends and starts again from the last commit" in run.output
        assert before == faults.predicted(stream)
        for run in zombies:
            stream.send_until_ready(run, 1)
        faults.check_as_if_nothing_had_happened(stream)
        for run in (*zombies, heir):
            assert run.stop(signal.SIGTERM) == 0


def tiny_disks(*folders: Path) -> tuple[Sequence[str], Sequence[str]]:
    """A command that runs another with a disk of 32 KiB at each folder; else a fault that does as if there were one."""
    mounts = [f'mount -t tmpfs -o size=32k none "${i}"' for i in range(len(folders))]
    script = " && ".join([*mounts, f"shift {len(folders) - 1}", 'exec "$@"'])
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, *map(str, folders)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("unshare") and not subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return prefix, []
    return [], ["full draft disk 3"]


def test_a_full_disk_stops_the_snapshots_and_nothing_else(broker: Any, tmp_path: Path) -> None:
    """Nor does a worker fail that starts while the disk is full. Feast has to wait."""
    stream = faults.make_stream(broker, tmp_path, "full", SAVING)
    prefix, lives = tiny_disks(tmp_path / "shared" / "blobs", tmp_path / "one" / "data" / "feast")
    with ExitStack() as stack:
        worker = stream.faulty(stack, "one", lives, prefix=prefix)
        stream.send_until(lambda: "cannot store a snapshot" in worker.output, worker)
        stream.send(200, rate=400)
        faults.check_one_prediction_each(stream)
        os.kill(faults.life(worker), signal.SIGKILL)
        worker.wait_for(f"ended with {-signal.SIGKILL}")
        stream.send_until_ready(worker, ALL)
        stream.send(200, rate=400)
        faults.check_as_if_nothing_had_happened(stream)
        assert worker.stop(signal.SIGTERM) == 0
        said = re.findall(r"ERROR streams.snapshots: (cannot store a snapshot of .*)", worker.output)
        assert all("No space left on device; free some space in file://" in line for line in said)
        # The registry of Feast comes first, and sometimes is small enough for the disk; then its tables are not.
        assert not prefix or re.search(
            "cannot (register .* with|write features of .* to) Feast", worker.output
        )
        assert "Traceback" not in worker.output


def test_snapshots_that_are_damaged_and_events_that_are_gone(broker: Any, tmp_path: Path) -> None:
    """Snapshots that were cut or changed are passed over; then events that no snapshot has are gone from Kafka."""
    stream = faults.make_stream(broker, tmp_path, "snapshots", SAVING)
    with ExitStack() as stack:
        worker = stream.faulty(stack, "one")
        faults.wait_ready(stream)
        stream.send_until(lambda: has_snapshots(stream, ()), worker)
        faults.check_one_prediction_each(stream)
        with faults.between_lives(worker):
            damaged = damage_newest(stream)
        stream.send_until_ready(worker, ALL)
        stream.send_until(lambda: has_snapshots(stream, damaged), worker)
        faults.check_as_if_nothing_had_happened(stream)
        for name in damaged:
            assert re.search(
                rf"{name} cannot be used \(the snapshot is damaged or cut short\)", worker.output
            )

        with faults.between_lives(worker):
            wanted = expire_events(stream)
        stream.send_until_ready(worker, ALL)
        stream.send(200, rate=400)
        faults.check_one_prediction_each(stream)
        for partition, (gone, _, _) in wanted.items():
            said = rf"partition={partition}\): offsets {gone[0]} to {gone[1]} are gone \(retention\)"
            assert re.search(said, worker.output)
        check_without_what_is_gone(stream, wanted)
        assert worker.stop(signal.SIGTERM) == 0


def has_snapshots(stream: faults.Stream, damaged: Sequence[str]) -> bool:
    """Whether every partition of both stages has as many snapshots as it keeps, and none of `damaged` is among them."""
    found = [stream.snapshots(index, p) for index in (0, 1) for p in range(faults.PARTITIONS)]
    return all(len(paths) == 3 and not {path.name for path in paths} & set(damaged) for paths in found)


def damage_newest(stream: faults.Stream) -> list[str]:
    """Spoil the newest snapshot of every partition of both stages, in turn one way and the other; their names."""
    names = []
    for index in (0, 1):
        for partition in range(faults.PARTITIONS):
            path = stream.snapshots(index, partition)[-1]
            faults.damage(path, ("cut", "bit")[partition % 2])
            names.append(path.name)
    return names


Gone = tuple[tuple[int, int], list[Any], StagePartition]


def expire_events(stream: faults.Stream) -> dict[int, Gone]:
    """Leave each partition of the events its oldest snapshot only, and delete events beyond that, as retention does.

    By partition: the first and last offset that are in no snapshot any more, all records, and the state without them.
    """
    topic, found = stream.topics.events, dict[int, Gone]()
    records: dict[int, list[Any]] = {p: [] for p in range(faults.PARTITIONS)}
    for record in read_all(stream.settings.kafka, topic):
        records[record.partition].append(record)
    admin = KafkaAdminClient(bootstrap_servers=stream.settings.kafka)
    try:
        for partition, all_of_it in records.items():
            oldest, *newer = stream.snapshots(0, partition)
            for path in newer:
                path.unlink()
            end = committed_offsets(stream.settings.kafka, stream.group, topic)[partition]
            first = int(oldest.name.partition("-")[0])
            kept = (first + end) // 2
            assert first < kept < end
            admin.delete_records({TopicPartition(topic, partition): kept})
            stage = StagePartition(stream.task, 0, Pseudonymiser(load_secret(stream.settings.secret)))
            stage.fold([r for r in all_of_it if not first <= r.offset < kept and r.offset < end])
            found[partition] = (first, kept - 1), all_of_it, stage
    finally:
        admin.close()
    return found


def check_without_what_is_gone(stream: faults.Stream, wanted: dict[int, Gone]) -> None:
    """New events have the features that a pass without the deleted events gives them."""
    expected, new = [], set[str]()
    for record in read_all(stream.settings.kafka, stream.topics.events):
        _, before, stage = wanted[record.partition]
        if record.offset > before[-1].offset:
            rows = stage.fold([record]).rows
            expected.append(rows)
            new |= set(rows.ids)
    moved = faults.moved(stream)
    chosen = [i for i, event_id in enumerate(moved.ids) if event_id in new]
    assert faults.difference(moved.take(np.array(chosen)), wire.Rows.concat(expected)) == {}

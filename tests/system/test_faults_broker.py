"""All roles under `driftline up`, and a broker that crashes and one that is away for half a minute."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from infra.embedded import EmbeddedKafka
from infra.kafka import group_ready, read_all
from streams import wire
from tests.system import fault_support as faults
from tests.system import run_support as runs

AWAY_S = 30.0
SERVING = 'snapshot_every = "500ms"'
GROUPS = ("serve", "join", "archive")


@contextmanager
def up(broker: EmbeddedKafka, folder: Path) -> Iterator[tuple[faults.Stream, runs.Run]]:
    """`driftline up` on a broker that is not its own, and the stream that it serves."""
    stream = faults.make_stream(broker, folder, "away", SERVING, label_rates=False)
    data = folder / "data"
    stream.settings = replace(
        stream.settings, data=data, blobs=f"file://{data}/blobs", secret=data / "secret.key"
    )
    command = ("up", "--task", str(stream.task.path), "--kafka", broker.address)
    runs.register(data, stream.task)
    with runs.running(data, *command, DRIFTLINE_PARTITIONS=str(faults.PARTITIONS)) as run:
        run.wait_for("Ctrl-C stops")
        yield stream, run


def await_groups(stream: faults.Stream, run: runs.Run) -> None:
    """Wait until every Faust role has its partitions."""

    def ready() -> bool:
        run.check_alive()
        return all(group_ready(stream.settings.kafka, f"driftline-{stream.task.name}-{g}") for g in GROUPS)

    runs.until(ready, "all roles with partitions", every_s=1.0)


def test_the_roles_come_back_by_themselves_when_the_broker_was_away(tmp_path: Path) -> None:
    """It is killed and started again under load; then it is away for half a minute, and comes back."""
    with EmbeddedKafka(tmp_path / "kafka") as broker, up(broker, tmp_path) as (stream, run):
        stream.send(400, rate=400)
        broker.kill()
        broker.start()
        stream.send(300, rate=400)
        faults.check_one_prediction_each(stream)
        stream.send(300)
        broker.stop()
        time.sleep(AWAY_S)
        run.check_alive()
        broker.start()
        stream.send(300, rate=400)
        faults.check_as_if_nothing_had_happened(stream)
        await_groups(stream, run)
        check_labelled_once(stream)
        model = stream.topics.model_updates
        learned = len(read_all(stream.settings.kafka, model))
        runs.until(lambda: more_is_learned(stream, learned), "a learner that goes on", every_s=1.0)
        assert run.stop(signal.SIGINT) == 0
        assert runs.processes(stream.settings.data) == {}


def more_is_learned(stream: faults.Stream, before: int) -> bool:
    """Send a little more; whether the learner has sent a newer model."""
    stream.send(50, rate=400)
    return len(read_all(stream.settings.kafka, stream.topics.model_updates)) > before


def check_labelled_once(stream: faults.Stream) -> None:
    """No example was decided twice."""
    records = read_all(stream.settings.kafka, stream.topics.labelled)
    decided = Counter(i for record in records for i in wire.decode_labelled(record.value).rows.ids)
    assert decided
    assert [event_id for event_id, count in decided.items() if count > 1] == []
    assert set(decided) <= stream.sent

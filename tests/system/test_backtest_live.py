"""A backtest against the roles themselves, on one stream: the same features, labels, scores and, at last, weights.

The roles run side by side on a real Kafka with one partition, while events stream in. Compared, bit for bit:

- every row that serve made: its features, categories and keys;
- the labelled rows, in their order, with label and the time when it was known;
- every score that was served: the backtest's row, scored by the version that the live prediction names, in the batch in
  which it was scored live (how a matrix product rounds depends on the number of its rows);
- the champion's weights at the end.

What a live run leaves to chance is where batches end and when a refresh reaches serving, and so which version scores
an event. The task takes all other chance away: its model learns one row at a time, so that weights do not depend on
batches; no feature is made of labels and the labels are there before their events, so that neither has to arrive in
time; and the learner starts late, so that there are scores of the untrained model too.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.blobs import Blobs
from infra.kafka import read_all
from infra.settings import Settings, load_secret
from learners import checkpoint
from learners.slot import Slot, encode_full
from learners.views import Payload
from streams import wire
from streams.backtest import Options, make_settings
from streams.backtest_engine import Backtest
from streams.backtest_stream import Path as Way
from streams.backtest_stream import cut
from streams.feed import Item, feed
from streams.heads import Heads
from streams.parts import gathered
from streams.prepare import prepare
from streams.privacy import Pseudonymiser
from streams.rows import ROW_ARRAYS, Labelled, Rows
from streams.simulate import Simulation, simulate
from streams.task import Task, load_task
from streams.topics import Topics
from tests.system import run_support as runs

EVENTS, UNTRAINED = 1_200, 400


def make_task(folder: Path, name: str) -> Task:
    """The clicks without label rates, with a model that learns row by row and is never replaced."""
    text = load_task("clicks").text.replace('name = "clicks"', f'name = "{name}"')
    lines = [line for line in text.splitlines() if not line.startswith("label_rate")]
    small = "batch_size = 1\nrows = 512\nhidden = [16]"
    text = "\n".join(lines).replace("batch_size = 64", small)
    path = folder / f"{name}.toml"
    path.write_text(text + '\n[drift]\npolicy = "shadow"\n')
    return load_task(path)


@dataclass
class Live:
    """The roles on a broker, and what they left in its topics."""

    task: Task
    settings: Settings
    folder: Path
    workers: list[runs.Run] = field(default_factory=list)

    @property
    def topics(self) -> Topics:
        return Topics.of(self.task)

    def start(self, stack: ExitStack, role: str) -> runs.Run:
        """One worker; all share the blobs and the secret."""
        (self.folder / role).mkdir()
        data = self.folder / role / "data"
        command = (role, "--task", str(self.task.path), "--kafka", self.settings.kafka)
        shared = {"DRIFTLINE_BLOBS": self.settings.blobs, "DRIFTLINE_SECRET": str(self.settings.secret)}
        if role == "serve":
            runs.register(data, self.task, **shared)
        self.workers.append(stack.enter_context(runs.running(data, *command, **shared)))
        return self.workers[-1]

    def send(self, items: list[Item], rate: float | None = None) -> None:
        feed(items, len(items), self.task, self.settings.kafka, rate=rate)

    def await_predictions(self, events: list[Item]) -> None:
        wanted = {str(item.value["event_id"]) for item in events if isinstance(item.value, dict)}
        rows = runs.await_predictions(self.settings.kafka, self.task, wanted)
        assert len(rows) == len(wanted)

    def send_until_refreshed(self, events: list[Item], start: int) -> int:
        """Send one event after the other until one is scored by a model that has learned; how many are sent then."""
        runs.until(lambda: any(meta["kind"] == "refresh" for meta, _ in self.updates()), "a refresh")
        for sent in range(start + 1, len(events)):
            self.send(events[sent - 1 : sent])
            self.await_predictions(events[:sent])
            if [version for _, _, version in self.examples()][-1] not in ("L1.0", "L1.1"):
                return sent
        raise AssertionError("no refresh reached serving")

    def await_joined(self, wanted: int) -> None:
        """Wait until join has decided so many examples: windows wait for word from the silent labels topic."""
        topic = self.topics.labelled
        runs.until(lambda: read_all(self.settings.kafka, topic), "a labelled row", every_s=1.0)
        runs.until(lambda: len(self.labelled()) >= wanted, f"{wanted} labelled rows", every_s=1.0)

    def await_learned(self) -> None:
        """Wait until a checkpoint of the learner has all labelled rows."""
        last, blobs = (
            read_all(self.settings.kafka, self.topics.labelled)[-1].offset,
            Blobs(self.settings.blobs),
        )

        def learned() -> bool:
            found = checkpoint.load_newest(blobs, f"learner/{self.task.name}").checkpoint
            return found is not None and found.meta["positions"]["0"][0] > last

        runs.until(learned, "a checkpoint with all labelled rows", every_s=1.0)

    def examples(self) -> Iterator[tuple[Rows, np.ndarray, str]]:
        """What serve scored, batch by batch: rows, scores, version."""
        for record in read_all(self.settings.kafka, self.topics.examples):
            if dict(record.headers)[wire.KIND] == wire.EXAMPLES:
                rows, served, versions = wire.decode_examples(record.value)
                assert len(set(versions)) == 1
                yield rows, served, versions[0]

    def labelled(self) -> Labelled:
        """What join decided, in its order."""
        records = read_all(self.settings.kafka, self.topics.labelled)
        return Labelled.concat([wire.decode_labelled(record.value) for record in records])

    def updates(self) -> Iterator[tuple[dict[str, Any], Payload]]:
        """What the learner published, in its order."""
        yield from gathered(read_all(self.settings.kafka, self.topics.model_updates))

    def tails(self) -> Iterator[tuple[str, str]]:
        for run in self.workers:
            yield from run.tails()


@pytest.fixture(scope="module")
def stream() -> Simulation:
    return simulate("clicks", seed=11, events=EVENTS)


@pytest.fixture(scope="module")
def live(broker: Any, tmp_path_factory: pytest.TempPathFactory, stream: Simulation) -> Live:
    """A live run over the stream that has ended: labels first, then events, the learner from the middle on."""
    folder = tmp_path_factory.mktemp("live")
    task = make_task(folder, "backtested")
    settings = prepare(task, Settings(kafka=broker.address, data=folder / "shared", partitions=1))
    load_secret(settings.secret)
    found = Live(task, settings, folder)
    items = list(stream.items())
    events, labels = ([item for item in items if item.kind == kind] for kind in ("event", "label"))
    with ExitStack() as stack:
        first = [found.start(stack, role) for role in ("serve", "join")]
        found.send(labels)
        runs.await_consumed(settings.kafka, task, "join", found.topics.labels)
        found.send(events[:UNTRAINED], rate=100)
        found.await_predictions(events[:UNTRAINED])
        learner = found.start(stack, "learn")
        heads = Heads(Blobs(settings.blobs), task.name)
        runs.until(heads.any, "the learner's first model")
        found.send(events[UNTRAINED : 2 * UNTRAINED], rate=100)
        sent = found.send_until_refreshed(events, 2 * UNTRAINED)
        found.send(events[sent:], rate=100)
        found.await_predictions(events)
        found.await_joined(len(way_through(found, stream)[1]))
        found.await_learned()
        assert learner.stop(signal.SIGTERM) == 0
        assert [worker.stop(signal.SIGTERM) for worker in first] == [0, 0]
    return found


def key_of(live: Live) -> Pseudonymiser:
    return Pseudonymiser(load_secret(live.settings.secret))


def backtested(live: Live, stream: Simulation, *policies: str, **more: Any) -> Backtest:
    settings = make_settings(live.task, stream, Options(policies, **more))
    backtest = Backtest(live.task, key_of(live), policies, stream.events, settings)
    backtest.run(stream.items())
    return backtest


def way_through(live: Live, stream: Simulation, size: int = 256) -> tuple[Rows, Labelled]:
    """A backtest's rows and labelled rows."""
    way, rows, decided = Way(live.task, key_of(live)), [], []
    for batch in cut(stream.items(), size, 10**12):
        rows.append(way.features(batch.events))
        decided.append(way.labelled(rows[-1], batch.labels))
    return Rows.concat(rows), Labelled.concat([part for part in decided if part is not None])


def check_equal(found: Rows, wanted: Rows) -> None:
    """Equal but for the time when Kafka got the event."""
    assert found.ids == wanted.ids
    for name in ROW_ARRAYS:
        if name != "received_ms":
            assert getattr(found, name).tobytes() == getattr(wanted, name).tobytes(), name


def test_rows_and_labels_are_those_of_the_live_roles(live: Live, stream: Simulation) -> None:
    parts = list(live.examples())
    assert len(parts) > 5  # many batches, which end elsewhere than the backtest's
    rows, labelled = way_through(live, stream)
    check_equal(Rows.concat([rows for rows, _, _ in parts]), rows)
    found = live.labelled()
    check_equal(found.rows, labelled.rows)
    for name in ("label", "known_ms", "default"):
        assert getattr(found, name).tobytes() == getattr(labelled, name).tobytes(), name
    assert 0 < found.label.sum() < len(found)


def test_scores_are_those_of_the_live_roles(live: Live, stream: Simulation) -> None:
    rows, _ = way_through(live, stream)
    place = {event_id: i for i, event_id in enumerate(rows.ids)}
    task, by_version, used = live.task, dict[str, list[tuple[Rows, np.ndarray]]](), set[str]()
    for part, served, version in live.examples():
        mine = rows.take(np.array([place[event_id] for event_id in part.ids]))
        by_version.setdefault(version, []).append((mine, served))
    slot = Slot(task.schema, task.model, task.seed)
    for meta, payload in [({}, b""), *live.updates()]:
        if meta and not slot.apply(meta, payload):
            continue
        for mine, served in by_version.get(slot.version, []):
            assert slot.score(mine.numbers, mine.categories)[0].tobytes() == served.tobytes(), slot.version
            used.add(slot.version)
    assert used == set(by_version)
    assert "L1.0" in used
    assert used - {"L1.0", "L1.1"}  # also one that had learned


def test_without_learning_scores_are_equal(live: Live, stream: Simulation) -> None:
    """The learner had not started: a backtest that learns nothing gives each of these events the live score."""
    backtest = backtested(live, stream, "static", warmup=0.0)
    live_scores = np.concatenate([served for _, served, version in live.examples() if version == "L1.0"])
    assert len(live_scores) >= UNTRAINED
    ours = backtest.lanes[0].scores[: len(live_scores)]
    # Batches end elsewhere, and sums in a matrix product are rounded by their order: the last bits may differ.
    np.testing.assert_allclose(ours, live_scores, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [256, EVENTS])
def test_the_champion_ends_with_the_same_weights(live: Live, stream: Simulation, size: int) -> None:
    """However the stream is cut: the live learner polled, the backtest takes micro-batches."""
    backtest = backtested(live, stream, "full", batch=size)
    trainer = backtest.lanes[0].policy.trainer
    assert trainer.examples == len(live.labelled()) == backtest.labelled
    head = Heads(Blobs(live.settings.blobs), live.task.name).get()
    assert head is not None
    meta, payload = encode_full(trainer, event_ms=0, created_ms=0)
    assert (meta["lineage"], meta["sha256"]) == (head.meta["lineage"], head.meta["sha256"])
    assert payload == head.payload

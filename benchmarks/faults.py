"""Random faults for serve workers under a steady stream, and then the count: nothing lost, nothing twice.

Starts a real Kafka and serve workers with their real settings, sends events all the time, and again and again kills,
stops, replaces or adds a worker, spoils a snapshot, or takes the broker away. At the end every event must have exactly
one prediction and one example under read_committed, with the features of an undisturbed pass, bit for bit.

The recovery time is counted from a kill to the first prediction after it of the last of the victim's partitions,
through both stages. A fault is "alone" when no other came before it was over.
"""

import random
import shutil
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table
from benchmarks._faults_fleet import Fleet
from benchmarks._faults_watch import Watch
from infra.clock import now_ms
from infra.embedded import EmbeddedKafka
from streams.feed import Item, feed
from tests.system import fault_support as support

SERVING = 'snapshot_every = "2s"\norder = "{order}"'
PLACES = "abcd"  # of the workers
PATIENCE_S, DRAIN_S, PAUSE_S = 60.0, 240.0, (0.3, 5.0)
PATIENT, QUICK = 0.25, 0.0  # how often the next fault waits until all goes on; else faults overlap
EXPELLED_S = (12.0, 15.0)  # a worker that is stopped for longer than its session (10 s)


@dataclass
class Fault:
    """One fault, and how long the partitions that it hit stood still (None: it hit none)."""

    kind: str
    at_ms: int
    partitions: set[int]
    recovery_s: float | None = None


class Soak:
    """A stream, its workers and its broker, and the faults that they meet."""

    def __init__(self, broker: EmbeddedKafka, folder: Path, args: Namespace, minutes: float) -> None:
        self.random = random.Random(args.seed)
        self.broker, self._rate, self._patience = broker, args.rate, QUICK if args.quick else PATIENT
        self._places, self._more = PLACES[: args.workers], PLACES[args.workers]
        events, serving = int((minutes + 10) * 60 * args.rate), SERVING.format(order=args.order)
        self.stream = support.make_stream(broker, folder, "soak", serving, events=events)
        self.fleet = Fleet(self.stream)
        self.watch = Watch(broker.address, self.stream.topics.predictions, support.PARTITIONS)
        self.faults: list[Fault] = []
        self._stop = threading.Event()
        self._feeder = threading.Thread(target=self._feed, name="feed")
        self._feed_error: BaseException | None = None

    def start(self) -> None:
        """Workers with partitions, then events."""
        for place in self._places:
            self.fleet.start(place)
        self.watch.start()
        support.wait_ready(self.stream)
        self._feeder.start()
        started = now_ms()
        self.tend_until(
            lambda: self.watch.recovered(started, range(support.PARTITIONS)) is not None, PATIENCE_S
        )

    def _feed(self) -> None:
        taken: list[str] = []

        def noted() -> Iterator[Item]:
            for item in self.stream.items:
                if isinstance(item.value, dict):
                    taken.append(str(item.value["event_id"]))
                yield item

        try:
            done = feed(
                noted(), 0, self.stream.task, self.stream.settings.kafka, rate=self._rate, stop=self._stop
            )
            self.stream.sent |= set(taken[: done.events])  # one that was taken and not sent is not among them
        except BaseException as error:
            self._feed_error = error

    def tend_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Look after the workers until `done()`; False when it took too long."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                return False
            self.fleet.tend()
            time.sleep(0.1)
        return True

    def tend_for(self, seconds: float) -> None:
        """Look after the workers for so long."""
        self.tend_until(lambda: False, seconds)

    def one_fault(self) -> Fault:
        """Let a random fault happen, then wait: until all that it hit goes on, or only for a moment."""
        kinds: dict[str, tuple[int, Callable[[str], Fault]]] = {
            "kill -9": (34, self._kill),
            "kill -9, newest snapshots damaged": (14, self._damage),
            "kill -9 of all workers": (5, self._kill_all),
            "SIGTERM, then a new worker": (10, self._replace),
            "one more worker comes or goes": (9, self._one_more),
            "stopped for a moment": (8, self._pause),
            "stopped until expelled, resumed": (14, self._expel),
            "broker kill -9, restart": (3, self._crash_broker),
            "broker stop, restart": (3, self._stop_broker),
        }
        kind = self.random.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        fault = kinds[kind][1](kind)
        self.faults.append(fault)
        if self.random.random() < self._patience:
            self.tend_until(
                lambda: self.watch.recovered(fault.at_ms, fault.partitions) is not None, PATIENCE_S
            )
        self.tend_for(self.random.uniform(*PAUSE_S))
        return fault

    def _victim(self) -> str:
        return self.random.choice(sorted(self.fleet.at))

    def _hit(self, kind: str, place: str) -> Fault:
        return Fault(kind, now_ms(), self.fleet.owned(self.fleet.at[place]))

    def _kill(self, kind: str) -> Fault:
        place = self._victim()
        fault = self._hit(kind, place)
        self.fleet.kill(place)
        self.fleet.start(place)
        return fault

    def _kill_all(self, kind: str) -> Fault:
        fault = Fault(kind, now_ms(), set(range(support.PARTITIONS)))
        for place in list(self.fleet.at):
            self.fleet.kill(place)
        for place in self._places:
            self.fleet.start(place)
        return fault

    def _damage(self, kind: str) -> Fault:
        place = self._victim()
        owned = self.fleet.owned(self.fleet.at[place])
        fault = Fault(kind, now_ms(), owned)
        self.fleet.kill(place)
        for index in range(len(self.stream.task.entities)):
            for partition in owned:
                for path in self.stream.snapshots(index, partition)[-1:]:
                    support.damage(path, self.random.choice(["cut", "bit"]))
        self.fleet.start(place)
        return fault

    def _replace(self, kind: str) -> Fault:
        place = self._victim()
        fault = self._hit(kind, place)
        self.fleet.leave(place)
        self.fleet.start(place)
        return fault

    def _one_more(self, kind: str) -> Fault:
        place = self._more
        if place not in self.fleet.at:
            self.fleet.start(place)
            return Fault(kind, now_ms(), set())
        fault = self._hit(kind, place)
        self.fleet.leave(place)
        return fault

    def _pause(self, kind: str) -> Fault:
        return self._stopped(kind, self.random.uniform(0.5, 5.0))

    def _expel(self, kind: str) -> Fault:
        return self._stopped(kind, self.random.uniform(*EXPELLED_S))

    def _stopped(self, kind: str, seconds: float) -> Fault:
        place = self._victim()
        fault = self._hit(kind, place)
        self.fleet.pause(place)
        self.tend_for(seconds)
        self.fleet.resume(place)
        return fault

    def _crash_broker(self, kind: str) -> Fault:
        fault = Fault(kind, now_ms(), set(range(support.PARTITIONS)))
        self.broker.kill()
        self.tend_for(self.random.uniform(0.0, 6.0))
        self.broker.start()
        return fault

    def _stop_broker(self, kind: str) -> Fault:
        fault = Fault(kind, now_ms(), set(range(support.PARTITIONS)))
        self.broker.stop()
        self.tend_for(self.random.uniform(0.0, 6.0))
        self.broker.start()
        return fault

    def finish(self) -> None:
        """Send no more, and wait until everything that was sent has come through, or does not any more."""
        self._stop.set()
        self._feeder.join()
        if self._feed_error:
            raise self._feed_error
        self.tend_until(lambda: self.watch.seen >= len(self.stream.sent), DRAIN_S)
        self.tend_for(3.0)  # a record too many would come now
        for fault in self.faults:
            fault.recovery_s = (
                self.watch.recovered(fault.at_ms, fault.partitions) if fault.partitions else None
            )
        self.watch.close()
        self.fleet.close()

    def close(self) -> None:
        """End what still runs, whatever happened."""
        self._stop.set()
        if self._feeder.is_alive():
            self._feeder.join()
        for life in self.fleet.at.values():
            life.run.process.kill()
            life.run.close()


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--minutes", type=float, default=0.0, help="of faults; default: 25, quick 0.3")
    made.add_argument("--seed", type=int, default=1, help="of the faults and their order (default: 1)")
    made.add_argument("--rate", type=float, default=300.0, help="events a second (default: 300)")
    made.add_argument(
        "--workers", type=int, choices=(1, 2, 3), default=2, help="that there are all the time (default: 2)"
    )
    made.add_argument("--order", choices=("arrival", "event_time"), default="arrival", help="serving.order")
    made.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs there")
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Run the faults, print what came of them, return the figures."""
    minutes = args.minutes or (0.3 if args.quick else 25.0)
    with scratch() as folder, EmbeddedKafka(folder / "kafka") as broker:
        soak = Soak(broker, folder, args, minutes)
        try:
            soak.start()
            begin = time.monotonic()
            while time.monotonic() - begin < minutes * 60:
                fault = soak.one_fault()
                print(f"{time.monotonic() - begin:7.1f} s  {len(soak.faults):4d}  {fault.kind}", flush=True)
            soak.finish()
            wrong = count(soak)
        finally:
            soak.close()
            if args.logs:
                soak.fleet.keep_logs(args.logs)
                shutil.copy(broker.log_path, args.logs)
    return report(soak, wrong)


def count(soak: Soak) -> Counter[str]:
    """What is wrong with the predictions, the examples and the features; the real ones, read once more."""
    stream, wrong = soak.stream, Counter[str]()
    topics = stream.topics
    predicted = Counter((record.key or b"").decode() for record in support.read(stream, topics.predictions))
    wrong["lost"] += len(stream.sent - predicted.keys())
    wrong["doubled"] += sum(predicted.values()) - len(predicted)
    wrong["strange"] += len(predicted.keys() - stream.sent) + len(support.read(stream, topics.dead_letters))
    for found, index in ((support.moved(stream), 0), (support.examples(stream), 1)):
        wanted = support.folded(stream, index)
        wrong["lost"] += len(stream.sent - set(wanted.ids))
        for what, ids in support.difference(found, wanted).items():
            wrong[what] += len(ids)
    return wrong


def report(soak: Soak, wrong: Mapping[str, int]) -> Mapping[str, float]:
    """Print the tables; the figures."""
    faults, rows = soak.faults, list[list[str | float]]()
    for kind in sorted({fault.kind for fault in faults}):
        those = [fault for fault in faults if fault.kind == kind]
        times = [fault.recovery_s for fault in those if fault.recovery_s is not None]
        alone = [
            fault.recovery_s for fault in those if fault.recovery_s is not None and is_alone(fault, faults)
        ]
        rows.append(
            [kind, len(those), _middle(times), _most(times), len(alone), _middle(alone), _most(alone)]
        )
    headers = ["fault", "times", "recovery p50 s", "max s", "alone", "p50 s", "max s"]
    print("\n" + table(headers, rows))
    ends = ", ".join(f"code {code}: {times}" for code, times in sorted(soak.fleet.ends.items())) or "none"
    print(f"\nworkers that ended by themselves and were started again: {ends}")
    print(f"workers that did not end when they were asked to: {soak.fleet.hung}")
    print(f"events {len(soak.stream.sent):,}, faults {len(faults)}; {dict(wrong)}")
    figures: dict[str, float] = {
        "faults": len(faults),
        "lost": wrong["lost"],
        "doubled": wrong["doubled"],
        "feature_mismatches": wrong["different"] + wrong["strange"],
    }
    recoveries = [fault.recovery_s for fault in faults if fault.recovery_s is not None]
    if recoveries:
        figures["recovery_s_max"] = max(recoveries)
    return figures


def is_alone(fault: Fault, faults: list[Fault]) -> bool:
    """Whether what it hit went on before another fault came, and none was still under way when it came."""
    if fault.recovery_s is None:
        return False
    begin, end = fault.at_ms, fault.at_ms + fault.recovery_s * 1000
    for other in faults:
        if other is fault:
            continue
        over = other.at_ms + (other.recovery_s or 15.0) * 1000
        if other.at_ms < end and over > begin:
            return False
    return True


def _middle(values: list[float]) -> float | str:
    return median(values) if values else "-"


def _most(values: list[float]) -> float | str:
    return max(values) if values else "-"


if __name__ == "__main__":
    main()

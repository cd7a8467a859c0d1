"""Where the time of a serve worker goes: µs of processor an event and step, beside what the machine could do at best.

One process and one thread work off simulated impressions without Kafka, in batches of --batch, by the serve role's own
`ServeStep`s; the records that go to Kafka are made, too. "At best" is the bare library call that no implementation can
do without, on the same data. `--flame FILE.svg` draws a flame graph of the same work.
"""

import asyncio
import sys
import time
import zlib
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

PARTITIONS = 4
STEPS = {
    "decode": "decode, check, pseudonyms, duplicates",
    "key": "features of the key",
    "pass_on": "rows to the next step: Arrow",
    "read": "rows of the step before: Arrow",
    "item": "features of the item",
    "score": "score",
    "predictions": "predictions: JSON",
    "examples": "examples: Arrow",
    "produce": "record batches for Kafka",
}


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--events", type=int, default=0, help="default: 400,000, quick 40,000")
    made.add_argument("--batch", type=int, default=1000, help="events of one batch (default: 1,000)")
    made.add_argument("--flame", type=Path, metavar="FILE", help="write a flame graph there, as SVG")
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Work events off, print the table, return µs an event by step."""
    from benchmarks._flame import Sampler, write_svg

    events = args.events or (40_000 if args.quick else 400_000)
    with scratch() as home:
        way = Way(home, events, args.batch)
        asyncio.run(way.work_off(way.records[: 5 * args.batch]))  # compiles, and fills caches
        way.spent.clear()
        with Sampler("work_off") as sampler:
            asyncio.run(way.work_off(way.records[5 * args.batch :]))
        best = way.best()
    if args.flame:
        write_svg(sampler.stacks, args.flame, f"serve, {events:,} impressions in batches of {args.batch:,}")
    spent = {name: 1e6 * way.spent[name] / events for name in STEPS}
    rows: list[list[str | float]] = [
        [STEPS[name], value, *best[name], "█" * max(1, round(4 * value))] for name, value in spent.items()
    ]
    rows.append(["in all", sum(spent.values()), sum(limit for limit, _ in best.values()), "", ""])
    print(f"{events:,} impressions in batches of {args.batch:,}, {PARTITIONS} partitions, one thread\n")
    print(table(["step", "µs an event", "at best", "what that is", "█ = 0.25 µs"], rows))
    return {f"us_{name}": value for name, value in spent.items()} | {"us_in_all": sum(spent.values())}


class Way:
    """One partition's way through both steps of the serve role, with a clock at each part of it."""

    def __init__(self, home: Path, events: int, batch: int) -> None:
        import msgspec
        import numpy as np
        import torch

        from infra.blobs import Blobs
        from infra.metrics import Metrics
        from infra.settings import Settings
        from learners.trainer import Trainer
        from streams.canary import Answer
        from streams.emit import Emitter
        from streams.privacy import Pseudonymiser
        from streams.serve import ServeContext, ServePass, ServeStep
        from streams.simulate import simulate
        from streams.task import load_task
        from streams.topics import Topics

        torch.set_num_threads(1)
        self.task, self.batch, self.spent = load_task("clicks"), batch, defaultdict[str, float](float)
        self.topics = topics = Topics.of(self.task)
        self.model = Trainer(self.task.schema, self.task.model, 1, "L1", "cpu")
        live: Any = SimpleNamespace(
            serve=lambda keys, numbers, categories: Answer(
                self._score(numbers, categories), ["L1.1"] * len(keys), np.zeros(len(keys), np.int32)
            )
        )
        nobody: Any = SimpleNamespace(add=lambda *_: None)
        settings = Settings(kafka="none:1", data=home, partitions=PARTITIONS)
        self.emitter: Any = Emitter(self.task, topics, PARTITIONS, live)
        context = ServeContext(
            self.task, settings, topics, Blobs(home.as_uri()), Pseudonymiser(b"k" * 32), live, self.emitter, nobody,
            nobody, Metrics(), nobody,
        )  # fmt: skip
        self.at_hand = ServePass(context)
        self.steps: list[Any] = [ServeStep(context, self.at_hand, index, 0) for index in range(2)]
        for step in self.steps:  # as `open` leaves them
            step._offsets = dict.fromkeys(step._sources, 0)
        self._put_clocks()
        items = (item for item in simulate("clicks", seed=1, events=events).items() if item.kind == "event")
        self.records = [
            SimpleNamespace(
                value=msgspec.json.encode(item.value), key=item.key.encode(), timestamp=item.time_ms, offset=offset,
                partition=0, topic=topics.events, headers=(),
            )
            for offset, item in enumerate(items)
        ]  # fmt: skip

    def _put_clocks(self) -> None:
        from streams import stage

        module, emitter = cast(Any, stage), self.emitter
        fills = [self._clocked(name, module._fill) for name in ("key", "item")]
        module._fill = lambda stages, *rest: fills[stages[0].index](stages, *rest)
        module._events = self._clocked("decode", module._events)
        emitter._pass_on = self._clocked("pass_on", emitter._pass_on)
        module._passed_on = self._clocked("read", module._passed_on)
        emitter._write_predictions = self._clocked("predictions", emitter._write_predictions)
        emitter._write_examples = self._clocked("examples", emitter._write_examples)
        self._score = self._clocked("score", self.model.score)

    def _clocked(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call; its time counts for `name` and not for the call that it is part of."""

        def clocked(*arguments: Any) -> Any:
            outer, self._inner = getattr(self, "_inner", 0.0), 0.0
            started = time.process_time()
            try:
                return call(*arguments)
            finally:
                spent = time.process_time() - started
                self.spent[name] += spent - self._inner
                self._inner = outer + spent

        return clocked

    async def work_off(self, records: list[Any]) -> None:
        """Batch after batch through both steps."""
        from faust.types import TP

        from streams.transaction import Outputs

        produce = self._clocked("produce", _record_batches)
        first, second = TP(self.topics.events, 0), TP(self.topics.stage(1), 0)
        for start in range(0, len(records), self.batch):
            passed, out = Outputs(), Outputs()
            self.steps[0].process({first: records[start : start + self.batch]}, passed)
            await self.at_hand.finish(passed)
            produce(passed)
            rows = [  # read again, as a worker does that is not alone
                SimpleNamespace(
                    value=bytes(value or b""), headers=headers, offset=start, topic=topic, partition=0
                )
                for (topic, _), written in passed.records.items()
                for _, value, headers in written
            ]
            self.steps[1].process({second: rows}, out)
            await self.at_hand.finish(out)
            produce(out)

    def best(self) -> dict[str, tuple[float, str]]:
        """µs an event of what nobody can do without, on this data and machine."""
        import msgspec
        import numpy as np

        count = 20_000
        values = [record.value for record in self.records[:count]]
        size = len(values[0])
        row = {"event_id": "imp-1-1", "score": 0.1, "version": "L1.1", "event_time": 1, "late": False}
        width = 8 * (len(self.task.numbers) + len(self.task.categories) + 8)
        block, state = np.zeros((count, width), np.uint8), np.zeros((100_000, 664), np.uint8)
        picks = np.random.default_rng(1).integers(0, len(state), count)
        weights = np.zeros((200, 64), np.float32)
        inputs = np.zeros((count, 200), np.float32)
        decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
        copy = _us(lambda: block.copy(), count)
        touch = _us(lambda: state[picks].sum(), count)
        return {
            "decode": (_us(lambda: [decode(value) for value in values], count), f"msgspec on {size} bytes"),
            "key": (touch, "one random read of 664 bytes"),
            "pass_on": (copy, f"one copy of {width} bytes"),
            "read": (copy, f"one copy of {width} bytes"),
            "item": (touch, "one random read of 664 bytes"),
            "score": (_us(lambda: inputs @ weights, count), "one product, 200 by 64"),
            "predictions": (_us(lambda: [encode(row) for _ in values], count), "msgspec of one object"),
            "examples": (copy, f"one copy of {width} bytes"),
            "produce": (
                _us(lambda: [zlib.crc32(value) for value in values], count),
                f"a checksum of {size} bytes",
            ),
        }


def _record_batches(outputs: Any) -> None:
    """The bytes that a producer would send."""
    from aiokafka.producer.message_accumulator import BatchBuilder

    for records in outputs.records.values():
        builder = BatchBuilder(1 << 24, 0, is_transactional=True, key_serializer=None, value_serializer=None)
        for key, value, headers in records:
            builder.append(key=key, value=value, timestamp=None, headers=headers)
        builder._build()


def _us(call: Callable[[], object], count: int) -> float:
    """µs of processor for each of `count` things that the call does; the best of five."""
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        call()
        best = min(best, time.process_time() - started)
    return 1e6 * best / count


if __name__ == "__main__":
    main()

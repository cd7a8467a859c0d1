"""How fast and how well a deep model learns from a stream on one core, beside deep-river and River.

Each program scores a row and then learns its label before it sees the next row (steps of one row, labels known at
once), on streams with the character of Elec2. Seconds are of processor time, one thread. Then the real learn role takes
labelled rows of 8 categories and 13 numbers from Kafka: decode, arena, DeepFM, refreshes and checkpoints.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # it is run by its path

from benchmarks._common import finish, parser, scratch, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks._broker import Bench

# Ours and theirs: the best of a few settings tried on other seeds.
DEEP = {
    "family": "dcn", "batch_size": 1, "optimiser": "sgd", "learning_rate": 0.05,
    "recent_labels": (2, 8, 48, 336),
}  # fmt: skip
BLOCK = 256  # rows that the learner gets at once: it still takes one step a row
NOTES = """\
Driftline    dcn, [64, 32], steps of one row, sgd 0.05, recent_labels [2, 8, 48, 336]: scores of test-then-train.
deep-river   MultiLayerPerceptron, two layers of 64, sgd 0.05, River's StandardScaler; a prefix of the stream.
River        StandardScaler | LogisticRegression as they come; and with sgd 0.05, which suits such streams better.
Every program knows each label before it scores the next row. ratio_ and auc_minus_ compare on the same rows; that to
River's logistic regression is to the better of its two settings."""


def main() -> None:
    """Parse, measure, print."""
    made = parser(__doc__ or "")
    made.add_argument("--seeds", type=int, nargs="+", default=[], help="streams; default: 11 12 13, quick 11")
    made.add_argument(
        "--rows", type=int, default=0, help="of a stream, at most 45,312; default: all, quick 12,000"
    )
    made.add_argument("--stream", type=Path, help="a .npz of your own with columns [n, N] and label [n]")
    made.add_argument(
        "--seconds", type=float, default=0.0, help="for deep-river, a stream; default: 60, quick 4"
    )
    args = made.parse_args()
    finish(lambda: measure(args), args.json)


def measure(args: Namespace) -> Mapping[str, float]:
    """Run everything in turn, print the tables, return the figures."""
    import torch

    from benchmarks._electricity import ROWS

    torch.set_num_threads(1)
    seeds = args.seeds or ([11] if args.quick else [11, 12, 13])
    rows = args.rows or (12_000 if args.quick else ROWS)
    with scratch() as home:
        streams = _streams(args.stream, seeds, rows)
        figures = _side_by_side(home, streams, args.seconds or (4.0 if args.quick else 60.0))
        examples = _end_to_end(home, 150_000 if args.quick else 1_000_000)
    print(f"\nDeepFM, 8 categories x 16 and 13 numbers, Kafka to checkpoint: {examples:,.0f} examples/s")
    return {**figures, "deepfm_examples_per_s": examples}


Stream = tuple["NDArray[np.float32]", "NDArray[np.float32]"]


def _streams(path: Path | None, seeds: list[int], rows: int) -> dict[str, Stream]:
    import numpy as np

    from benchmarks._electricity import stream

    if path is None:
        return {f"seed {seed}": stream(seed, rows) for seed in seeds}
    held = np.load(path)
    return {path.stem: (held["columns"].astype(np.float32), held["label"].astype(np.float32))}


def _side_by_side(home: Path, streams: Mapping[str, Stream], seconds: float) -> Mapping[str, float]:
    """The table of all programs on all streams, and its figures: medians of ratios, means of differences of AUC."""
    from infra.errors import UserError

    lines: list[list[str | float]] = []
    found: dict[str, list[float]] = {}
    for name, (columns, label) in streams.items():
        ours, rate = _driftline(columns, label)
        results = {"driftline": (ours, rate)}
        for peer, learning_rate in (("river, as it comes", 0.01), ("river, sgd 0.05", 0.05)):
            results[peer] = _river(columns, label, learning_rate)
        try:
            results["deep-river"] = _deep_river(home, columns, label, seconds)
        except UserError as error:
            print(f"deep-river is left out: {error}\n")
        for program, (scores, speed) in results.items():
            n = len(scores)
            mine, its = _auc(label[:n], ours[:n]), _auc(label[:n], scores)
            lines.append([name, program, n, speed, its, mine - its])
            for key, value in (("ratio", rate / speed), ("auc", its), ("auc_minus", mine - its)):
                found.setdefault(f"{key} {program}", []).append(value)
    print(table(["stream", "program", "rows", "rows/s", "AUC", "driftline's AUC is better by"], lines))
    print(f"\n{NOTES}")
    return _figures(found)


def _figures(found: Mapping[str, list[float]]) -> dict[str, float]:
    best = max(("river, as it comes", "river, sgd 0.05"), key=lambda name: fmean(found[f"auc {name}"]))
    figures = {"auc": fmean(found["auc driftline"])}
    for name, program in (("river_logistic", best), ("deep_river", "deep-river")):
        if f"auc {program}" in found:
            figures[f"ratio_{name}"] = median(found[f"ratio {program}"])
            figures[f"auc_minus_{name}"] = fmean(found[f"auc_minus {program}"])
    return figures


def _auc(label: "NDArray[Any]", score: "NDArray[Any]") -> float:
    from learners.prequential import metrics

    return metrics(label, score)["auc"]


def _driftline(
    columns: "NDArray[np.float32]", label: "NDArray[np.float32]"
) -> tuple["NDArray[np.float32]", float]:
    """Scores before learning, and rows a second of processor time."""
    import numpy as np

    from learners.batch import Batch, ModelConfig, Schema
    from learners.trainer import Trainer

    schema = Schema(tuple(f"c{i}" for i in range(columns.shape[1])), (), "benchmark")
    times = np.arange(len(label), dtype=np.int64)
    nothing = np.zeros((len(label), 0), np.int64)
    served = np.full(len(label), np.nan, np.float32)
    batch = Batch([""] * len(label), times, times, columns, nothing, served, label)
    config = ModelConfig(**DEEP)  # type: ignore[arg-type]
    Trainer(schema, config, 1, "L1", "cpu").test_then_train(batch.slice(0, 8))  # compiles or loads the kernel
    trainer = Trainer(schema, config, 1, "L1", "cpu")
    begin = time.process_time()
    scores = [trainer.test_then_train(batch.slice(at, at + BLOCK)) for at in range(0, len(label), BLOCK)]
    return np.concatenate(scores), len(label) / (time.process_time() - begin)


def _river(
    columns: "NDArray[np.float32]", label: "NDArray[np.float32]", learning_rate: float
) -> tuple["NDArray[np.float32]", float]:
    """The same for River's logistic regression; making dicts and the answers is not timed."""
    import numpy as np
    from river import linear_model, optim, preprocessing

    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(learning_rate))
    names = [f"c{i}" for i in range(columns.shape[1])]
    rows = [dict(zip(names, row, strict=True)) for row in columns.tolist()]
    answers, scores = [bool(each) for each in label], []
    begin = time.process_time()
    for row, answer in zip(rows, answers, strict=True):
        scores.append(model.predict_proba_one(row)[True])
        model.learn_one(row, answer)
    return np.array(scores, np.float32), len(label) / (time.process_time() - begin)


def _deep_river(
    home: Path, columns: "NDArray[np.float32]", label: "NDArray[np.float32]", seconds: float
) -> tuple["NDArray[np.float32]", float]:
    """The same in deep-river's own environment, for so many seconds. Raises UserError when it cannot run."""
    import numpy as np

    from benchmarks._peers import deep_river_python, run_peer

    source, out = home / "stream.npz", home / "scores.npz"
    np.savez(source, columns=columns, label=label)
    run_peer(deep_river_python(), "deep_river_mlp.py", [source, seconds, out], 20 * seconds + 120)
    found = np.load(out)
    return found["score"], (len(found["score"]) - 1) / float(found["seconds"])


def _end_to_end(home: Path, examples: int) -> float:
    """Examples a second of processor time from Kafka through the learn role, first and last checkpoint included."""
    from benchmarks._broker import Bench

    with Bench(home, 1) as bench:
        return _learned(bench, examples)


def _learned(bench: "Bench", examples: int) -> float:
    from benchmarks._deepfm import START_MS, STEP_MS, labelled, task
    from benchmarks._refreshes import Refreshes, processor_seconds
    from infra.kafka import make_producer
    from streams.prepare import prepare
    from streams.topics import Topics
    from streams.wire import encode_labelled

    deepfm = task(bench.home)
    topics = Topics.of(deepfm)
    prepare(deepfm, bench.settings)
    producer = make_producer(bench.kafka)
    for number in range(examples // 1000):
        value = encode_labelled(labelled(deepfm, 1000, number))
        producer.send(topics.labelled, value=value, partition=0)
    producer.flush()
    producer.close()
    last_ms = START_MS + (examples - 1) * STEP_MS
    command = [sys.executable, "-m", "streams.cli", "learn", "--task", str(deepfm.path)]
    updates = Refreshes(bench.kafka, topics.model_updates)
    with bench.worker("learn", command) as worker, updates:
        begin_ms = updates.await_event(START_MS + examples // 10 * STEP_MS, worker)
        begin = processor_seconds(worker.process.pid)
        updates.await_event(last_ms, worker)
        seconds = processor_seconds(worker.process.pid) - begin
    return (last_ms - begin_ms) / STEP_MS / seconds


if __name__ == "__main__":
    main()

"""Ids without end: what an exact table is worth beside a hashed one, and what it costs.

A stream in which new items and users keep coming and old ones go, and a third category whose values come only once. A
net scores each event before it learns from it, with a hashed table, one of sixteen times as many rows, and exact ones.
Told are the AUC and log loss over the second half, how many of the ids seen of late share a row with another, the size
of the whole model as it is sent, and rows a second of processor time (scoring and learning).
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._common import finish, parser, table

if TYPE_CHECKING:
    from learners.batch import Batch
    from learners.trainer import Trainer

ROWS = 4096
MODELS: dict[str, dict[str, Any]] = {
    "hashed": {"rows": ROWS},
    "hashed_16x": {"rows": 16 * ROWS},
    "exact": {"rows": ROWS, "table": "exact", "admit_after": 2},
    "exact_admit_1": {"rows": ROWS, "table": "exact", "admit_after": 1},
    "exact_admit_5": {"rows": ROWS, "table": "exact", "admit_after": 5},
}
BATCH = 256
EVERY = 50  # events between two new items, and two new users
AGE = 1_500.0  # how many newer items a typical item of an event has; of a user half of that
RECENT = 20_000  # events whose ids are looked at for shared rows


def stream(n: int, seed: int) -> "Batch":
    """n events: an item, a user, a value that comes once; a click depends on the first two and on one number."""
    import numpy as np

    from learners.batch import Batch

    random = np.random.default_rng(seed)
    born = np.arange(n) // EVERY
    effects, ids = [], []
    for age in (AGE, AGE / 2):
        # Most events are of a few of the newer ones: popularity is heavy-tailed.
        behind = (random.exponential(age, n) * random.random(n) ** 2).astype(np.int64)
        chosen = np.maximum(born - behind, 0)
        effects.append(random.normal(0, 1.2, n // EVERY + 1)[chosen])
        ids.append(_mixed(chosen + 1))
    number = random.normal(0, 1, n)
    odds = effects[0] + effects[1] + 0.5 * number - 2.0
    label = (random.random(n) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    categories = np.column_stack((*ids, _mixed(np.arange(1, n + 1))))
    moments, names = np.arange(n, dtype=np.int64), [str(i) for i in range(n)]
    served = np.full(n, np.nan, np.float32)
    return Batch(names, moments, moments, number.astype(np.float32)[:, None], categories, served, label)


def _mixed(values: Any) -> Any:
    import numpy as np

    with np.errstate(over="ignore"):
        bits = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return ((bits ^ (bits >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)).astype(np.int64)


def shared(trainer: "Trainer", recent: "Batch") -> float:
    """Share of the different items and users of some events that have no row to themselves."""
    import numpy as np

    index = trainer.model.inputs(recent.numbers, recent.categories)[1].cpu().numpy()
    alone = total = 0
    for column in (0, 1):
        pairs = np.unique(np.column_stack((index[:, column], recent.categories[:, column])), axis=0)
        _, many = np.unique(pairs[:, 0], return_counts=True)
        alone += int((many == 1).sum())
        total += len(pairs)
    return 1.0 - alone / total


def measured(batch: "Batch", settings: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one model."""
    import numpy as np

    from learners.batch import ModelConfig, Schema
    from learners.prequential import log_loss
    from learners.slot import encode_full
    from learners.trainer import Trainer

    schema = Schema(("number",), ("item", "user", "once"), "bench")
    trainer = Trainer(
        schema, ModelConfig(family="dcn", batch_size=BATCH, learning_rate=0.01, **settings), 1, "L1", "cpu"
    )
    scores = np.empty(len(batch), np.float32)
    warm = 20 * BATCH
    started = 0.0
    for start in range(0, len(batch), BATCH):
        if start == warm:
            started = time.process_time()
        part = batch.slice(start, start + BATCH)
        scores[start : start + BATCH] = trainer.score(part.numbers, part.categories)
        trainer.train(part)
    spent = time.process_time() - started
    half = len(batch) // 2
    recent = batch.slice(len(batch) - RECENT, len(batch))
    return {
        "auc": _auc(batch.label[half:], scores[half:]),
        "log_loss": float(np.mean(log_loss(batch.label[half:], scores[half:]))),
        "shared": shared(trainer, recent),
        "model_mib": len(encode_full(trainer, event_ms=0, created_ms=0)[1]) / 2**20,
        "rows_per_s": (len(batch) - warm) / spent,
    }


def _auc(label: Any, scores: Any) -> float:
    import numpy as np

    order = np.argsort(scores, kind="stable")
    rank = np.empty(len(scores))
    rank[order] = np.arange(1, len(scores) + 1)
    positive = label == 1
    many = int(positive.sum())
    return float((rank[positive].sum() - many * (many + 1) / 2) / (many * (len(label) - many)))


def main() -> None:
    """Measure every model on the same events."""
    made = parser(__doc__ or "")
    made.add_argument("--seed", type=int, default=1)
    options = made.parse_args()

    def measure() -> dict[str, float]:
        import torch

        torch.set_num_threads(1)
        batch = stream(80_000 if options.quick else 600_000, options.seed)
        found = {name: measured(batch, settings) for name, settings in MODELS.items()}
        heads = list(found["hashed"])
        print(table(["table", *heads], [[name, *figures.values()] for name, figures in found.items()]))
        return {f"{name}_{key}": value for name, figures in found.items() for key, value in figures.items()}

    finish(measure, options.json)


if __name__ == "__main__":
    main()

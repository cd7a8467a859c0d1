"""A DeepFM task and labelled rows of it, for the way from Kafka through the real learn role."""

from pathlib import Path

import numpy as np

from streams.rows import Labelled, Rows
from streams.task import Task, load_task

CATEGORIES, NUMBERS = 8, 13
START_MS, STEP_MS = 1_700_000_000_000, 1000

_FIELDS = "".join(f'c{i} = {{ type = "category" }}\n' for i in range(CATEGORIES))
_FIELDS += "".join(f'n{i} = {{ type = "number" }}\n' for i in range(NUMBERS))
TEXT = f"""
[task]
name = "deepfm"
metric = "auc"

[event]
id = "id"
time = "at"
key = "c0"

[event.fields]
{_FIELDS}
[entities]
first = "c0"

[label]
field = "y"
delay = "0s"
window = "1h"
missing = "drop"

[model]
family = "deepfm"
embedding = 16
batch_size = 1024
"""


def task(home: Path) -> Task:
    """The task, of a file in `home`."""
    path = home / "deepfm.toml"
    path.write_text(TEXT)
    return load_task(str(path))


def labelled(task: Task, n: int, number: int) -> Labelled:
    """Record `number` of `n` rows each: 1,000 values a category, some more often, and an event every `STEP_MS`."""
    random = np.random.default_rng(number)
    values = (random.pareto(1.2, (n, CATEGORIES)) * 20).astype(np.int64) % 1000 + 1
    numbers = random.normal(0.0, 1.0, (n, NUMBERS))
    logit = np.sin(values[:, 0] * 1.7) + np.sin(values[:, 1] * values[:, 2]) + numbers[:, 0] - 1.5
    label = (random.random(n) < 1.0 / (1.0 + np.exp(-logit))).astype(np.float32)
    times = START_MS + (number * n + np.arange(n, dtype=np.int64)) * STEP_MS
    rows = Rows(
        [f"{number}-{i}" for i in range(n)],
        times,
        times,
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int64),
        np.zeros(n, np.bool_),
        values[:, :1],
        values * 6_364_136_223_846_793_005,
        numbers,
        numbers.astype(np.float32),
        task.rows_hash,
    )
    served, ones = np.full(n, 0.3, np.float32), np.ones(n, np.float32)
    no = np.zeros(n, np.bool_)
    return Labelled(rows, served, ["L1.0"] * n, label, times, no, ones, no)

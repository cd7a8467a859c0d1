"""One of the ranks that `tests/unit/test_parallel.py` starts with torchrun: learns, and writes down what it became."""

import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save as tensors_to_bytes

from learners.batch import ModelConfig
from learners.parallel import Apart, joined, ranks
from learners.trainer import Trainer
from streams.outlet import ListOutlet
from tests import rank_learner
from tests.learner_rows import RICH, SCHEMA, contents, rows, trainer_of

STEPS, SIZE = 12, 96
SMALL: dict[str, Any] = {"rows": 301, "embedding": 4, "hidden": [8], "batch_size": 32, "learning_rate": 0.01}
SPREAD: dict[str, dict[str, Any]] = {
    "adam": {"family": "dcn", "shards": 2},
    "alone": {"family": "logistic", "optimiser": "ftrl"},
    "exact": {"family": "mlp", "optimiser": "rowwise_adagrad", "table": "exact", "rows": 16, "shards": 3},
}  # fmt: skip


def trainers() -> Iterator[tuple[str, Trainer]]:
    """Models of several kinds whose steps have two shards, or three for two ranks."""
    yield "mlp", trainer_of("mlp", "adam", shards=2, batch_size=32)
    yield "logistic", trainer_of("logistic", "ftrl", shards=3, batch_size=64)
    yield "replay", trainer_of("deepfm", "rowwise_adagrad", shards=2, replay=1, replay_rows=100)
    yield "exact", trainer_of("dcn", "sgd", shards=2, table="exact", rows=16, momentum=0.9)
    yield "weights", trainer_of("svm", "adamw", shards=2, smallest_batch=1, schedule_steps=3)
    yield "short", trainer_of("gru", "adam", RICH, shards=2, units=8, precision="bfloat16", hidden=(8,))


def learned(trainer: Trainer) -> tuple[dict[str, bytes], list[bytes]]:
    """What a trainer is after some steps, and the scores before each."""
    scores = []
    for number in range(STEPS):
        batch = rows(SIZE + number, number, trainer.schema)
        scores.append(trainer.score(batch.numbers, batch.categories).tobytes())
        if number == 5:
            batch.label[:3] = float("nan")  # a step that is rejected everywhere
        if number % 2:
            batch.weight[::5] = 3.0
        trainer.train(batch)
    return contents(trainer), scores


def everything() -> dict[str, tuple[dict[str, bytes], list[bytes]]]:
    """By name, for all trainers."""
    torch.set_num_threads(1)
    return {name: learned(trainer) for name, trainer in trainers()}


def spread_config(settings: dict[str, Any]) -> ModelConfig:
    """Settings of a model whose table is spread."""
    return ModelConfig.from_dict(SMALL | settings | {"spread_table": True})


def spread_out() -> dict[str, list[dict[str, bytes]]]:
    """States of models whose table is spread over the ranks, after steps, of a copy, and after they were loaded."""
    found = {}
    for name, settings in SPREAD.items():
        trainer = Trainer(SCHEMA, spread_config(settings), 7, "L1", "cpu")
        here = len(getattr(trainer.model.table, "part"))  # noqa: B009
        assert here == -(-(len(trainer.model.table) - ranks().rank) // ranks().count)
        found[name] = states(trainer)
    return found


def states(trainer: Trainer) -> list[dict[str, bytes]]:
    """What the trainer, a copy of it and one that was loaded are after some steps more."""
    for number in range(STEPS):
        trainer.train(rows(SIZE, number))
    refresh = tensors_to_bytes(trainer.delta().tensors)
    copy = trainer.clone("L2", replace(trainer.config, learning_rate=0.003))
    copy.train(rows(SIZE, 99))
    saved = trainer.state()
    trainer.load(saved)
    trainer.train(rows(SIZE, 98))
    scores = trainer.score(rows(50, 97).numbers, rows(50, 97).categories).tobytes()
    return [saved, copy.state(), trainer.state(), {"refresh": refresh, "scores": scores}]


def drift_apart() -> str:
    """A rank whose weights are others: what the step says of it."""
    trainer = trainer_of("mlp", shards=2)
    if ranks().rank:
        next(trainer.model.parameters()).data.add_(1.0)
    try:
        trainer.train(rows(32))
    except Apart as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    """Write `RANK.pickle`."""
    torch.set_num_threads(1)
    first = rank_learner.alone(folder) if dist.get_node_local_rank() == 0 else ListOutlet()
    with joined() as all_ranks:
        all_ranks.tell({"told": 7}) if all_ranks.rank == 0 else None
        heard = {"told": 7} if all_ranks.rank == 0 else all_ranks.hear()
        found = {
            "count": all_ranks.count,
            "heard": heard,
            "learned": everything(),
            "apart": drift_apart(),
            "spread": spread_out(),
            "learner": rank_learner.together(folder, first),
        }
        (folder / f"{all_ranks.rank}.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Captured steps: without a GPU a body is called where it would be replayed, and all else is the same code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learners.batch import GRADIENT_FAMILIES, Batch, ModelConfig, Schema
from learners.graphed import GraphedLesson, Static
from learners.lesson import GradientLesson
from learners.target import Target
from learners.trainer import Trainer
from tests.learner_rows import CONFIG, RICH, SCHEMA, VALUES, contents, log_loss, rows, value_rows

CLASSES = replace(SCHEMA, target=Target("multiclass", ("a", "b", "c")))
AS_LESSON = "learners.trainer.lesson_of"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def of_schema(schema: Schema, n: int, seed: int) -> Batch:
    """Rows whose labels suit the schema's target."""
    if schema.target.is_value:
        return value_rows(n, seed)
    batch = rows(n, seed, schema)
    if schema.target.classes:
        batch = replace(batch, label=(batch.categories[:, 1] % 3).astype(np.float32))
    return batch


def learn(trainer: Trainer) -> Trainer:
    """Steps of all rows and of fewer, with and without weights, one of them not finite, and a drift."""
    for number in range(6):
        batch = of_schema(trainer.schema, 70, number)
        if number == 2:
            batch.label[40] = float("nan")
        if number % 2:
            batch.weight[::5] = 3.0
        trainer.train(batch)
        if number == 4:
            trainer.drifted([batch], since_ms=50)
    return trainer


CASES: list[tuple[str, Schema, dict[str, Any]]] = [
    *[(family, RICH, {"units": 8, "rows": 256}) for family in GRADIENT_FAMILIES],
    *[("mlp", SCHEMA, {"optimiser": name}) for name in ("adamw", "rowwise_adagrad", "rmsprop", "ftrl")],
    ("dcn", SCHEMA, {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 0.01, "schedule": "plateau"}),
    ("deepfm", SCHEMA, {"schedule": "cosine", "warmup_steps": 3, "recent_labels": (20, 200)}),
    ("mlp", SCHEMA, {"precision": "bfloat16", "smallest_batch": 8, "schedule_steps": 2}),
    ("dcn", SCHEMA, {"table": "exact", "rows": 16, "ewc": 10.0}),
    ("mlp", SCHEMA, {"renew": 0.01, "replay": 1, "replay_rows": 50}),
    ("mlp", CLASSES, {"class_weights": (1.0, 2.0, 3.0), "loss": "focal"}),
    ("logistic", VALUES, {}),
]


@pytest.mark.parametrize(("family", "schema", "settings"), CASES)
def test_a_captured_step_is_the_plain_one(
    family: str, schema: Schema, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, family=family, **{"batch_size": 20} | settings)
    found = []
    for lesson in (GradientLesson, GraphedLesson):
        monkeypatch.setattr(AS_LESSON, lesson)
        found.append(learn(Trainer(schema, config, 7, "L1", "cpu")))
    plain, captured = found
    assert captured.dropped == plain.dropped > 0
    assert captured.steps > 12
    wanted = contents(plain)
    assert [name for name, value in contents(captured).items() if value != wanted[name]] == []


class Recorded(TorchDispatchMode):
    """Names of the operations that a capture would not survive: those that wait for the device, or for the host's
    memory, or whose result has a shape that depends on the data.
    """

    BARRED = ("_local_scalar_dense", "nonzero", "unique", "lift_fresh", "masked_select", "equal.default")

    def __init__(self) -> None:
        super().__init__()
        self.barred: list[str] = []
        self.seen = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.seen += 1
        name = str(func)
        by_mask = name.startswith(("aten.index.", "aten.index_put")) and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if by_mask or any(barred in name for barred in self.BARRED):
            self.barred.append(name)
        return func(*args, **(kwargs or {}))


def test_the_recorder_sees_what_a_capture_would_not_survive() -> None:
    some = torch.arange(3.0)
    for barred in (lambda: bool(some.sum() > 1), lambda: torch.tensor([1.0]), lambda: some[some > 1]):
        with Recorded() as recorded:
            barred()
        assert recorded.barred != []


@pytest.mark.parametrize(("family", "schema", "settings"), CASES)
def test_a_body_waits_for_nothing_and_writes_nothing(
    family: str, schema: Schema, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every family: so each of them can be captured."""
    seen: list[int] = []

    class Watched(Static):
        def __call__(self, body: Callable[..., tuple[Tensor, ...]], *given: Tensor) -> tuple[Tensor, ...]:
            body(*given)  # a warm-up
            before = contents(trainer)
            with Recorded() as recorded:
                found = body(*given)
            assert recorded.barred == []
            assert contents(trainer) == before
            seen.append(recorded.seen)
            return found

    monkeypatch.setattr("learners.graphed.Static", Watched)
    monkeypatch.setattr(AS_LESSON, GraphedLesson)
    config = replace(CONFIG, family=family, **settings | {"batch_size": 20, "smallest_batch": 0})
    trainer = Trainer(schema, config, 7, "L1", "cpu")
    for weight in (1.0, 2.0):
        batch = of_schema(schema, 20, 1)
        batch.weight[:] = weight
        trainer.train(batch)
    assert len(seen) >= 4  # passes and update, with weights and without
    assert min(seen) > 5


def test_what_a_static_call_returns_lies_where_it_lay() -> None:
    static, given = Static(), torch.ones(3)
    (first,) = static(lambda each: (each * 2.0,), given)
    given.fill_(5.0)  # the input was copied
    assert first.tolist() == [2.0] * 3
    (second,) = static(lambda each: (each * 2.0,), given)
    assert second.tolist() == [10.0] * 3
    assert first.data_ptr() == second.data_ptr()


@needs_gpu
@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_replays_its_steps(family: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"units": 8, "rows": 256, "batch_size": 20, "precision": precision}
    config = replace(CONFIG, family=family, **settings)
    captured, again = (learn(Trainer(RICH, config, 7, "L1", "cuda")) for _ in range(2))
    assert isinstance(captured.lesson, GraphedLesson)
    statics = [*captured.lesson._passes.values(), captured.lesson.optimiser.runner]
    assert all(isinstance(each, Static) and each._graph is not None for each in statics)
    monkeypatch.setattr(AS_LESSON, GradientLesson)
    plain = learn(Trainer(RICH, config, 7, "L1", "cuda"))
    assert captured.dropped == plain.dropped > 0
    batch = rows(500, 99, RICH)
    scores = [each.score(batch.numbers, batch.categories) for each in (plain, captured, again)]
    losses = [log_loss(score, batch.label) for score in scores]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    np.testing.assert_array_equal(scores[1], scores[2])


@needs_gpu
def test_a_step_on_a_gpu_that_is_not_finite_changes_nothing() -> None:
    trainer = Trainer(SCHEMA, ModelConfig(family="mlp", rows=256, batch_size=20), 7, "L1", "cuda")
    trainer.train(rows(40))
    before = trainer.state()
    batch = rows(20, 1)
    batch.label[3] = float("inf")
    trainer.train(batch)
    after = Trainer(SCHEMA, trainer.config, 7, "L1", "cpu")
    after.load(trainer.state())
    assert after.dropped == 1
    assert trainer.state()["trainer.safetensors"] == before["trainer.safetensors"]
    trainer.train(rows(20, 2))
    assert (trainer.steps, trainer.dropped) == (3, 1)


@needs_gpu
def test_what_cannot_be_captured_is_called(caplog: pytest.LogCaptureFixture) -> None:
    static = Static()

    def waits(each: Tensor) -> tuple[Tensor, ...]:
        return (each * float(each.sum()),)

    with caplog.at_level("INFO", "learners.graphed"):
        found = [static(waits, torch.full((2,), value, device="cuda"))[0].tolist() for value in (1.0, 2.0)]
    assert found == [[2.0, 2.0], [8.0, 8.0]]
    assert "could not be captured" in caplog.text

"""The size of a model that a task file asks for: the estimate is true, and what is too large is refused."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from infra.errors import UserError
from learners.batch import FAMILIES, ModelConfig, Schema
from learners.models import build_model
from learners.weights import extract
from streams.task import load_task
from streams.task_size import LARGEST_MODEL, fitting_rows, memory, whole_model_bytes
from tests.learner_rows import RICH
from tests.stream_records import TRIPS, task


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("numbers", "categories"), [(0, 3), (9, 0), (5, 2)])
@pytest.mark.parametrize("hidden", [(), (16, 8)])
def test_the_estimate_is_what_a_whole_model_takes(
    family: str, numbers: int, categories: int, hidden: tuple[int, ...]
) -> None:
    config = ModelConfig(family=family, embedding=4, rows=64, hidden=hidden)
    schema = schema_of(numbers, categories)
    check_estimate(config, schema)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_estimate_counts_what_blocks_take(family: str, layers: int) -> None:
    check_estimate(ModelConfig(family=family, embedding=4, rows=64, units=8, layers=layers), RICH)


def test_the_estimate_counts_the_ids_of_an_exact_table() -> None:
    for family in ("dcn", "logistic", "gru"):
        check_estimate(ModelConfig(family=family, embedding=4, rows=4096, table="exact"), RICH)


def schema_of(numbers: int, categories: int) -> Schema:
    return Schema(tuple(f"n{i}" for i in range(numbers)), tuple(f"c{i}" for i in range(categories)), "f")


def check_estimate(config: ModelConfig, schema: Schema) -> None:
    model = build_model(schema, config, 0)
    sent = len(save(extract(model, torch.ones(len(model.table), dtype=torch.bool))))
    estimate = whole_model_bytes(config, schema)
    assert sent <= estimate <= sent + 5000


def test_a_model_that_is_too_large_is_refused_with_what_it_would_need_and_what_would_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError) as caught:
        task("[model]\nrows = 67108864\nembedding = 16\n")
    line = len((TRIPS + "[model]").splitlines()) + 1
    assert str(caught.value) == (
        f"trips.toml:{line}: model: a whole model can take 4.8 GiB, more than 4 GiB: a serve worker would need 19 GiB "
        "for it, the learner 86\n  fix: lower rows (now 67108864) to 33554432 or less, or embedding (now 16)"
    )
    assert task("[model]\nrows = 33554432\nembedding = 16\n").model.rows == 33554432
    with pytest.raises(UserError, match=r"challenger: a whole model can take"):
        task("[challenger]\nrows = 67108864\nembedding = 16\n")
    for module in ("task_size", "task_parse"):
        monkeypatch.setattr(f"streams.{module}.LARGEST_MODEL", 15 << 20)
    with pytest.raises(UserError, match="lower embedding or hidden"):
        task("[model]\nhidden = [4096, 4096]\n")


def test_what_models_take_of_workers_and_learner_grows_with_who_learns() -> None:
    schema, config = schema_of(9, 4), ModelConfig(family="dcn", rows=1 << 20)
    one, whole = memory(schema, config, (), 0), whole_model_bytes(config, schema)
    assert (one["model"], one["serve"]) == (whole, 4 * whole)
    assert one["learn"] > 12 * whole
    wider = replace(config, embedding=2 * config.embedding)
    two = memory(schema, config, (config, wider), 8)
    assert two["serve"] == 4 * whole_model_bytes(wider, schema)
    assert two["learn"] == one["learn"] + 6 * (9 * whole + whole_model_bytes(wider, schema))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_to_fit_fits(family: str) -> None:
    for categories in (30, 60, 200):
        config = ModelConfig(family=family)
        rows = fitting_rows(config, schema_of(30, categories))
        assert whole_model_bytes(replace(config, rows=rows), schema_of(30, categories)) <= LARGEST_MODEL
        assert whole_model_bytes(replace(config, rows=2 * rows), schema_of(30, categories)) > LARGEST_MODEL
    deep = ModelConfig(hidden=(8192,) * 16, embedding=512)
    assert fitting_rows(deep, schema_of(5, 20)) == 0
    assert fitting_rows(ModelConfig(), schema_of(5, 0)) == 0


def test_the_built_in_tasks_are_far_below() -> None:
    for name in ("clicks", "transactions"):
        made = load_task(name)
        size = whole_model_bytes(made.model, made.schema)
        assert 4096 < size < 8 << 20

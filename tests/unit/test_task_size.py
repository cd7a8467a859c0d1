"""The size of a model that a task file asks for: the estimate is true, and what cannot be sent is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from infra.errors import UserError
from learners.batch import FAMILIES, ModelConfig, Schema
from learners.models import build_model
from learners.weights import extract
from streams.task import Task, load_task
from streams.task_parse import parse_task
from streams.task_size import LARGEST_MODEL, fitting_rows, whole_model_bytes
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


def many(categories: int, more: str = "") -> Task:
    fields = "".join(f'c{i} = {{ type = "category" }}\n' for i in range(categories))
    text = TRIPS.replace("[entities]", fields + "[entities]") + more
    return parse_task(text, "trips.toml", Path("/somewhere/trips.toml"))


def test_a_model_that_cannot_be_sent_is_refused_with_what_would_fit() -> None:
    assert len(many(15).categories) == 16
    with pytest.raises(UserError) as caught:
        task("[model]\nrows = 1048576\nembedding = 16\n")
    line = len((TRIPS + "[model]").splitlines()) + 1
    assert str(caught.value) == (
        f"trips.toml:{line}: model: a whole model can take 76.0 MiB, more than the 15 MiB that are sent at once\n"
        "  fix: lower rows (now 1048576) to 131072 or less, or embedding (now 16)"
    )
    assert task("[model]\nrows = 131072\nembedding = 16\n").model.rows == 131072
    with pytest.raises(UserError, match=r"challenger: a whole model can take"):
        task("[challenger]\nrows = 1048576\n")
    with pytest.raises(UserError, match="lower embedding or hidden"):
        task("[model]\nhidden = [4096, 4096]\n")


def test_without_rows_in_the_file_there_are_as_many_as_fit() -> None:
    wide = many(36)
    assert (wide.model.rows, wide.challenger.rows) == (8192, 8192)
    assert many(15).model.rows == ModelConfig().rows
    assert many(36, "[challenger]\nembedding = 16\n").challenger.rows == 4096
    for chosen in ("[model]\nrows = 16384\n", "[model]\nrows = 8192\n[challenger]\nembedding = 16\n"):
        with pytest.raises(UserError, match="lower rows"):
            many(36, chosen)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_to_fit_fits(family: str) -> None:
    for categories in (1, 7, 60):
        config = ModelConfig(family=family)
        rows = fitting_rows(config, schema_of(30, categories))
        assert whole_model_bytes(replace(config, rows=rows), schema_of(30, categories)) <= LARGEST_MODEL
        assert whole_model_bytes(replace(config, rows=2 * rows), schema_of(30, categories)) > LARGEST_MODEL
    assert fitting_rows(ModelConfig(hidden=(8192, 8192)), schema_of(5, 1)) == 0
    assert fitting_rows(ModelConfig(), schema_of(5, 0)) == 0


def test_the_built_in_tasks_are_far_below() -> None:
    for name in ("clicks", "transactions"):
        made = load_task(name)
        size = whole_model_bytes(made.model, made.schema)
        assert 4096 < size < LARGEST_MODEL / 2

"""Steps in shards: the same bits with one rank and with two, and nearly those of a step that is whole."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from learners.batch import GRADIENT_FAMILIES, ModelConfig
from learners.parallel import Ranks, cuts, joined, ranks
from learners.trainer import Trainer
from streams.crew import check_ranks
from streams.task import load_task
from tests import rank_worker
from tests.learner_rows import RICH, SCHEMA, contents, log_loss, rows, trainer_of

ROOT = Path(__file__).parents[2]


@given(st.integers(0, 300), st.integers(1, 64))
def test_shards_are_neighbours_of_nearly_one_length(n: int, shards: int) -> None:
    found = cuts(n, shards)
    assert [row for part in found for row in range(n)[part]] == list(range(n))
    lengths = [part.stop - part.start for part in found]
    assert len(found) == shards
    assert max(lengths) - min(lengths) <= 1


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found, over gloo."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*command, "tests.rank_worker", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def test_two_ranks_learn_what_one_learns(two: list[dict[str, Any]]) -> None:
    threads = torch.get_num_threads()
    alone = rank_worker.everything()
    torch.set_num_threads(threads)
    for found in two:
        assert found["count"] == 2
        assert found["heard"] == {"told": 7}
        assert found["learned"].keys() == alone.keys()
        for name, (state, scores) in alone.items():
            assert [key for key in state if found["learned"][name][0][key] != state[key]] == [], name
            assert found["learned"][name][1] == scores, name


def test_a_table_that_is_spread_over_ranks_is_the_whole_one(two: list[dict[str, Any]]) -> None:
    for name, settings in rank_worker.SPREAD.items():
        config = ModelConfig.from_dict(rank_worker.SMALL | settings)
        assert config.shards > 1 or name == "alone"
        # Not compiled: that is another arithmetic.
        whole = Trainer(SCHEMA, config, 7, "L1", "cpu", spread_table=True)
        plain = Trainer(SCHEMA, config, 7, "L1", "cpu")
        wanted = rank_worker.states(plain if config.shards > 1 else whole)
        for found in two:
            assert found["spread"][name] == wanted, name


def test_nothing_else_is_done_with_a_spread_table() -> None:
    table = Trainer(SCHEMA, ModelConfig(rows=32), 7, "L1", "cpu", spread_table=True).model.table
    with pytest.raises(TypeError, match="does not work on a table that is spread"):
        table.sum()
    with pytest.raises(ValueError, match=r"naive_bayes .* cannot be spread"):
        Trainer(SCHEMA, ModelConfig(family="naive_bayes"), 7, "L1", "cpu", spread_table=True)


def test_ranks_that_hold_different_weights_notice(two: list[dict[str, Any]]) -> None:
    assert all("different weights" in found["apart"] for found in two)


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_a_step_in_shards_is_a_whole_step_but_for_rounding(family: str) -> None:
    whole, cut = (trainer_of(family, "sgd", RICH, shards=n, units=8, rows=256) for n in (1, 5))
    losses = []
    for number in range(8):
        batch = rows(200, number, RICH)
        scores = [each.score(batch.numbers, batch.categories) for each in (whole, cut)]
        losses.append([log_loss(score, batch.label) for score in scores])
        np.testing.assert_allclose(scores[0], scores[1], atol=2e-4)
        whole.train(batch)
        cut.train(batch)
    one, other = np.array(losses).T
    np.testing.assert_allclose(one, other, rtol=1e-3)
    assert whole.steps == cut.steps > 0


@pytest.mark.parametrize("family", GRADIENT_FAMILIES)
def test_bfloat16_learns_nearly_the_same_and_keeps_weights_and_scores_in_float32(family: str) -> None:
    long, short = (
        trainer_of(family, "sgd", RICH, precision=precision, units=8, rows=256)
        for precision in ("float32", "bfloat16")
    )
    for number in range(8):
        batch = rows(200, number, RICH)
        long.train(batch)
        short.train(batch)
    batch = rows(500, 99, RICH)
    losses = [log_loss(each.score(batch.numbers, batch.categories), batch.label) for each in (long, short)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert short.dropped == 0
    assert {value.dtype for value in short.model.state_dict().values()} == {torch.float32}
    assert contents(long) != contents(short)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("settings", [{}, {"shards": 3}, {"precision": "bfloat16"}])
def test_a_gpu_learns_what_the_cpu_learns_and_twice_the_same(settings: dict[str, Any]) -> None:
    config = ModelConfig.from_dict(rank_worker.SMALL | {"family": "mlp", "batch_size": 100} | settings)
    here, there, again = (Trainer(SCHEMA, config, 7, "L1", device) for device in ("cpu", "cuda", "cuda"))
    for number in range(8):
        for each in (here, there, again):
            each.train(rows(200, number))
    batch = rows(500, 99)
    scores = [each.score(batch.numbers, batch.categories) for each in (here, there, again)]
    assert log_loss(scores[0], batch.label) == pytest.approx(log_loss(scores[1], batch.label), rel=0.05)
    np.testing.assert_array_equal(scores[1], scores[2])


def test_a_step_with_fewer_rows_than_shards() -> None:
    trainer = trainer_of("mlp", shards=7)
    trainer.train(rows(3))
    assert (trainer.steps, trainer.dropped) == (1, 0)
    assert len(trainer.score(rows(2).numbers, rows(2).categories)) == 2
    assert len(trainer.score(rows(0).numbers, rows(0).categories)) == 0


def test_outside_of_torchrun_a_process_is_alone() -> None:
    with joined() as here:
        assert here == ranks() == Ranks(0, 1)
        here.tell("nobody hears it")


def test_more_ranks_than_shards_are_refused() -> None:
    task = load_task("clicks")
    shared = replace(task, model=replace(task.model, shards=2), challenger=replace(task.challenger, shards=2))
    check_ranks(shared, Ranks(0, 2))
    check_ranks(task, Ranks())
    with pytest.raises(
        UserError, match=r"2 ranks cannot share a step of \[model\], whose shards is 1"
    ) as caught:
        check_ranks(task, Ranks(0, 2))
    assert caught.value.fix.startswith("write shards = 2 under [model]")
    third = replace(shared, others=(task.model,))
    with pytest.raises(UserError, match=r"\[challenger\], whose shards is 1"):
        check_ranks(third, Ranks(1, 2))
    counting = replace(task, model=ModelConfig(family="knn"), challenger=ModelConfig(family="naive_bayes"))
    check_ranks(counting, Ranks(0, 2))

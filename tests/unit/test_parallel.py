"""Steps in shards: the same bits with one rank and with two, and nearly those of a step that is whole."""

import pickle
import shutil
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
from infra.settings import Settings
from learners import checkpoint
from learners.batch import GRADIENT_FAMILIES, ModelConfig
from learners.costs import as_served
from learners.parallel import Ranks, cuts, joined, ranks
from learners.slot import Slot
from learners.trainer import STATE_TENSORS, Trainer
from streams.crew import check_ranks
from streams.kept import Kept
from streams.outlet import ListOutlet
from streams.task import load_task
from tests import learner_log as logs
from tests import rank_learner, rank_worker
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
    found = [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    return [each | {"folder": folder} for each in found]


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
        config = rank_worker.spread_config(settings)
        wanted = rank_worker.states(Trainer(SCHEMA, config, 7, "L1", "cpu"))
        for found in two:
            assert found["spread"][name] == wanted, name
        if config.shards > 1:  # else steps of a whole table are compiled: that is another arithmetic
            plain = rank_worker.states(Trainer(SCHEMA, replace(config, spread_table=False), 7, "L1", "cpu"))
            weights = [[each.get(key) for key in (STATE_TENSORS, "refresh", "scores")] for each in wanted]
            assert weights == [
                [each.get(key) for key in (STATE_TENSORS, "refresh", "scores")] for each in plain
            ]


def test_a_learner_with_spread_tables_goes_on_from_its_ledger_with_one_rank_two_and_one(
    two: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    folder = two[0]["folder"]
    first, second = (found["learner"] for found in two)
    assert first["digest"] == second["digest"]
    assert min(first["elsewhere"]) > 0  # rows of every table that rank 0 does not have
    assert (first["version"], first["chain"]) == (second["version"], second["chain"])
    assert not first["version"].startswith("L1.")  # a challenger won

    task = rank_learner.task()
    slot = Slot(task.schema, task.model, task.seed, "cpu")  # a serving worker
    for meta, payload in first["updates"]:
        slot.apply(meta, payload)
    assert (slot.version, slot.chain) == (first["version"], first["chain"])

    torch.set_num_threads(1)
    again = tmp_path_factory.mktemp("again")
    shutil.copytree(folder / "data", again, dirs_exist_ok=True)
    kept = Kept.of(Settings(kafka="none:1", data=again, partitions=2), task.name)
    for blob in kept.store.list(f"{kept.checkpoints}/"):
        kept.store.delete(blob)
    assert checkpoint.load_newest(kept.store, kept.checkpoints).checkpoint is None
    # One rank repeats all of it from the ledger, versions too; it says so where one is not the same.
    repeated = rank_learner.lived(again, rank_learner.SECOND, ListOutlet())
    assert logs.digest(repeated.training.arena) == first["digest"]
    assert "is not what it was" not in caplog.text
    # And one rank goes on from the checkpoint that two left.
    went_on = rank_learner.lived(folder / "data", rank_learner.ROWS, ListOutlet())
    assert went_on.training.arena.examples == rank_learner.ROWS
    assert not any(said in caplog.text for said in ("skipped", "begins", "cannot be repeated"))


def test_nothing_else_is_done_with_a_spread_table() -> None:
    trainer = Trainer(SCHEMA, ModelConfig(rows=32, spread_table=True), 7, "L1", "cpu")
    with pytest.raises(TypeError, match="does not work on a table that is spread"):
        trainer.model.table.sum()
    assert type(as_served(trainer).table) is torch.Tensor  # what is timed, by one rank
    counting = Trainer(SCHEMA, ModelConfig(family="naive_bayes", spread_table=True), 7, "L1", "cpu")
    assert type(counting.model.table) is torch.Tensor


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

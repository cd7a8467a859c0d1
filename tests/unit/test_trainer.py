import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from learners import weights
from learners.batch import GRADIENT_FAMILIES, OPTIMISERS, Batch, ModelConfig, Schema
from learners.models import Net
from learners.trainer import Trainer, pick_device, warm_up
from tests.learner_rows import CONFIG, SCHEMA, contents, log_loss, optimiser_of, rows, trainer_of

# Each family with the usual optimiser, and each optimiser with the usual family.
PAIRS = [(family, "adam") for family in GRADIENT_FAMILIES]
PAIRS += [("dcn", optimiser) for optimiser in OPTIMISERS if optimiser != "adam"]
every_family = pytest.mark.parametrize("family", GRADIENT_FAMILIES)
every_optimiser = pytest.mark.parametrize("optimiser", OPTIMISERS)
every_pair = pytest.mark.parametrize(("family", "optimiser"), PAIRS)


@every_pair
def test_training_lowers_the_loss_on_rows_not_seen(family, optimiser):
    trainer, unseen = trainer_of(family, optimiser), rows(500, seed=99)
    before = log_loss(trainer.score(unseen.numbers, unseen.categories), unseen.label)
    trainer.train(rows(4000))
    after = log_loss(trainer.score(unseen.numbers, unseen.categories), unseen.label)
    assert before == pytest.approx(np.log(2), abs=0.01)
    assert after < (0.5 if family in ("logistic", "svm") or optimiser in ("sgd", "ftrl") else 0.25)
    assert trainer.dropped == 0
    assert trainer.examples == 4000


# Scores of five rows, noted before there were other families, losses and schedules.
AS_EVER = {
    "dcn": [0.09360, 0.63289, 0.66894, 0.03745, 0.29101],
    "deepfm": [0.11471, 0.78550, 0.76658, 0.17262, 0.44601],
    "logistic": [0.47689, 0.47014, 0.50068, 0.42575, 0.43475],
}


@pytest.mark.parametrize("family", AS_EVER)
def test_the_usual_settings_learn_what_they_always_did(family):
    config = ModelConfig(family=family, rows=2048, learning_rate=0.01, batch_size=128)
    trainer, batch = Trainer(SCHEMA, config, 7, "L1", "cpu"), rows(5, 9)
    trainer.train(rows(1280))
    # Other machines add up in another order; a changed rule is off by far more.
    np.testing.assert_allclose(trainer.score(batch.numbers, batch.categories), AS_EVER[family], atol=1e-3)


@pytest.mark.parametrize("family", ["dcn", "deepfm", "mlp", "two_tower"])
def test_products_of_features_are_learned(family):
    """The label is whether two categories agree in parity: neither says anything alone."""
    random = np.random.default_rng(5)
    values = random.integers(1, 20, (12_000, 2))
    batch = replace(rows(12_000), numbers=np.zeros((12_000, 3), np.float32), categories=values)
    batch = replace(batch, label=(values.sum(1) % 2).astype(np.float32))
    trainer = trainer_of(family)
    trainer.train(batch.slice(0, 11_000))
    scores = trainer.score(batch.numbers[11_000:], values[11_000:])
    assert ((scores > 0.5) == batch.label[11_000:]).mean() > 0.95


@every_pair
def test_the_same_batches_give_the_same_bits(family, optimiser):
    first, second = trainer_of(family, optimiser), trainer_of(family, optimiser)
    for trainer in (first, second):
        for seed, n in enumerate((100, 32, 1, 333)):
            trainer.train(rows(n, seed))
    assert contents(first) == contents(second)


def test_micro_batches_are_taken_in_order_and_the_last_may_be_smaller():
    together, apart = trainer_of(), trainer_of()
    batch = rows(70)
    together.train(batch)
    for start in (0, 32, 64):
        apart.train(batch.slice(start, start + 32))
    assert contents(together) == contents(apart)
    assert together.steps == 3
    together.train(Batch.empty(SCHEMA))
    assert contents(together) == contents(apart)


@every_pair
def test_a_loaded_trainer_goes_on_as_if_nothing_had_happened(family, optimiser):
    trainer = trainer_of(family, optimiser)
    trainer.train(rows(200))
    trainer.delta()
    trainer.train(replace(rows(32, 1), label=np.full(32, np.inf, np.float32)))
    trainer.train(rows(100, 2))
    other = Trainer(SCHEMA, ModelConfig(), seed=1, lineage="L9", device="cpu")
    other.load(trainer.state())
    assert contents(other) == contents(trainer)
    assert (other.version, other.dropped, other.seed) == ("L1.1", 1, 7)
    for each in (trainer, other):
        each.train(rows(300, 3))
    assert contents(other) == contents(trainer)
    assert other.state() == trainer.state()
    assert other.delta().chain == trainer.delta().chain


def test_a_state_of_another_schema_or_of_other_shapes_is_refused_and_changes_nothing():
    trainer = trainer_of()
    trainer.train(rows(100))
    before = contents(trainer)
    elsewhere = Schema(SCHEMA.numbers, SCHEMA.categories, "fingerprint-2")
    with pytest.raises(ValueError, match="another schema"):
        trainer.load(Trainer(elsewhere, CONFIG, 7, "L1", "cpu").state())
    mixed = trainer_of("deepfm").state() | {"trainer.json": trainer.state()["trainer.json"]}
    with pytest.raises((ValueError, KeyError)):
        trainer.load(mixed)
    assert contents(trainer) == before


@every_pair
@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_a_step_that_is_not_finite_is_dropped_counted_and_leaves_no_trace(family, optimiser, poison):
    trainer, clean = trainer_of(family, optimiser), trainer_of(family, optimiser)
    batch = rows(96)
    batch.label[40] = poison  # in the second of three steps
    trainer.train(batch)
    clean.train(batch.slice(0, 32))
    clean.train(batch.slice(64, 96))
    assert contents(trainer) == contents(clean)
    assert (trainer.dropped, trainer.steps, trainer.examples) == (1, 2, 64)


@pytest.mark.parametrize("overflowing", ["dense", "rows", "neither"])
def test_finite_gradients_whose_new_weights_overflow_are_noticed(overflowing):
    trainer = trainer_of("dcn", "sgd", learning_rate=1e30, clip_norm=1e38)
    before = contents(trainer)
    index = torch.tensor([3, 5])
    rows_of_step = trainer.model.table[index]
    dense_gradient, row_gradient = (
        torch.zeros_like(optimiser_of(trainer).dense),
        torch.zeros_like(rows_of_step),
    )
    if overflowing != "neither":
        (dense_gradient if overflowing == "dense" else row_gradient).view(-1)[-1] = 1e15
    proposal = optimiser_of(trainer).propose(
        torch.tensor(0.5), (dense_gradient, row_gradient), index, rows_of_step
    )
    assert proposal.finite == (overflowing == "neither")
    assert contents(trainer) == before


def test_an_infinite_number_does_not_poison_the_statistics():
    trainer, batch = trainer_of(), rows(320)
    batch.numbers[::7, 0] = np.inf
    batch.numbers[::11, 1] = -np.inf
    batch.numbers[::13, 2] = np.finfo(np.float32).max
    trainer.train(batch)
    assert trainer.dropped == 0
    assert np.isfinite(trainer.score(batch.numbers, batch.categories)).all()


@every_optimiser
def test_a_step_writes_only_the_rows_it_touches(optimiser):
    trainer = trainer_of("dcn", optimiser, weight_decay=0.1)
    trainer.train(rows(300))
    table = trainer.model.table.clone()
    memories = [memory.clone() for memory in optimiser_of(trainer).table_memory]
    batch = rows(20, 1)
    touched = torch.zeros(len(table), dtype=torch.bool)
    touched[trainer.model.index(torch.from_numpy(batch.categories))] = True
    trainer.train(batch)
    assert torch.equal(trainer.model.table[~touched], table[~touched])
    assert (trainer.model.table[touched] != table[touched]).any(1).all()
    for memory, before in zip(optimiser_of(trainer).table_memory, memories, strict=True):
        assert torch.equal(memory[~touched], before[~touched])


@every_family
def test_a_row_that_occurs_often_in_a_step_gets_the_sum_of_its_gradients(family):
    """Against plain autograd through the whole table, with repeated categories."""
    trainer = trainer_of(family, "sgd", clip_norm=1e9, batch_size=100)
    batch = rows(100)
    batch.categories[:, 0] = batch.categories[0, 0]
    trainer.train(batch)
    reference = trainer_of(family, "sgd").model
    assert isinstance(reference, Net)
    numbers, label = torch.from_numpy(batch.numbers), torch.from_numpy(batch.label)
    reference.observe(numbers, label)
    reference.table.requires_grad_()
    rows_of_step = reference.table[reference.index(torch.from_numpy(batch.categories))]
    reference.objective(numbers, rows_of_step, label).backward()
    assert reference.table.grad is not None
    expected = reference.table.detach() - 0.5 * reference.table.grad
    torch.testing.assert_close(trainer.model.table, expected)
    parameters = dict(reference.named_parameters())
    for name, value in trainer.model.named_parameters():
        gradient = parameters[name].grad
        assert gradient is not None
        torch.testing.assert_close(value.data, parameters[name].data - 0.5 * gradient)


def test_the_gradient_is_clipped_to_its_norm():
    trainer, free = (trainer_of("dcn", "sgd", clip_norm=norm, learning_rate=1.0) for norm in (0.01, 1e9))
    moved = []
    for each in (trainer, free):
        before = torch.cat((optimiser_of(each).dense.flatten(), each.model.table.flatten()))
        each.train(rows(32))
        after = torch.cat((optimiser_of(each).dense.flatten(), each.model.table.flatten()))
        moved.append(after - before)
    assert moved[0].norm().item() == pytest.approx(0.01, rel=1e-3)
    assert moved[1].norm().item() > 0.1
    direction = torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0)
    assert direction.item() == pytest.approx(1, abs=1e-3)


def test_weight_decay_pulls_towards_zero():
    plain, decayed = (trainer_of("dcn", weight_decay=decay) for decay in (0.0, 0.5))
    for each in (plain, decayed):
        each.train(rows(1000))
    assert optimiser_of(decayed).dense.norm() < 0.9 * optimiser_of(plain).dense.norm()


def test_wrong_columns_are_refused_before_anything_changes():
    trainer = trainer_of()
    before = contents(trainer)
    batch = rows(10)
    with pytest.raises(ValueError, match="wants"):
        trainer.train(replace(batch, numbers=batch.numbers[:, :1]))
    assert contents(trainer) == before


def test_a_delta_carries_the_changed_rows_and_everything_dense():
    trainer = trainer_of()
    trainer.train(rows(300))
    first = trainer.delta()
    batch = rows(4, 1)
    trainer.train(batch)
    second, third = trainer.delta(), trainer.delta()
    index = sorted({int(i) for i in trainer.model.index(torch.from_numpy(batch.categories)).flatten()})
    assert second.tensors["table.index"].tolist() == index
    assert torch.equal(second.tensors["table.rows"], trainer.model.table[index])
    dense = {*dict(trainer.model.named_parameters()), "mean", "var", "count", "seen"}
    assert set(second.tensors) == {*dense, "table.index", "table.rows"}
    assert len(first.tensors["table.index"]) > len(index)
    assert third.tensors["table.index"].tolist() == []
    for before, after in itertools.pairwise((first, second, third)):
        assert (after.previous, after.follows) == (before.refresh, before.chain)
    assert trainer.version == "L1.3"


def test_a_delta_does_not_change_when_training_goes_on():
    trainer = trainer_of()
    trainer.train(rows(300))
    delta = trainer.delta()
    before = {name: tensor.clone() for name, tensor in delta.tensors.items()}
    trainer.train(rows(300, 1))
    assert all(torch.equal(before[name], delta.tensors[name]) for name in before)


def test_a_whole_model_has_the_version_of_the_delta_before_it_unless_steps_came_between():
    trainer = trainer_of()
    trainer.train(rows(300))
    delta, same = trainer.delta(), trainer.full()
    assert (same.refresh, same.chain) == (delta.refresh, delta.chain)
    trainer.train(rows(10))
    newer = trainer.full()
    assert (newer.refresh, newer.follows) == (2, delta.chain)
    assert newer.chain != delta.chain
    assert trainer.delta().follows == newer.chain


def test_no_version_names_two_weights_after_going_back_to_a_checkpoint():
    trainer = trainer_of()
    trainer.train(rows(100))
    state = trainer.state()
    published = [trainer.delta() for _ in range(3)]
    again = Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")
    again.load(state)
    again.advance(published[-1].refresh)
    assert again.full().refresh == 4
    assert again.delta().previous == 4
    again.advance(2)
    assert again.delta().refresh == 6


def test_a_clone_starts_equal_and_then_goes_its_own_way():
    parent = trainer_of()
    parent.train(rows(500))
    batch = rows(50, 1)
    expected = parent.score(batch.numbers, batch.categories)
    child = parent.clone("L2")
    assert child.version == "L2.0"
    assert child.chain != parent.chain
    np.testing.assert_array_equal(child.score(batch.numbers, batch.categories), expected)
    before = contents(parent)
    child.train(rows(500, 2))
    assert contents(parent) == before
    assert not np.array_equal(child.score(batch.numbers, batch.categories), expected)


def test_a_clone_with_another_seed_keeps_what_was_learned_and_its_whole_model_says_everything():
    parent = trainer_of()
    parent.train(rows(500))
    child = parent.clone("L2", seed=8)
    assert torch.equal(child.model.table[parent.touched], parent.model.table[parent.touched])
    copy = Trainer(SCHEMA, CONFIG, 8, "L2", "cpu")
    weights.write(copy.model, child.full().tensors)
    assert torch.equal(copy.model.table, child.model.table)


def test_a_clone_with_other_settings_takes_what_fits():
    parent = trainer_of()
    parent.train(rows(500))
    wider = parent.clone("L2", replace(parent.config, hidden=(32, 8), optimiser="sgd"))
    mine, its = dict(parent.model.named_parameters()), dict(wider.model.named_parameters())
    assert torch.equal(its["crosses.0.weight"], mine["crosses.0.weight"])
    assert its["deep.0.weight"].shape == (32, 11)
    assert torch.equal(wider.model.table, parent.model.table)
    wider.train(rows(100))
    assert wider.dropped == 0


def test_a_clone_of_another_family_takes_only_the_running_statistics():
    parent = trainer_of()
    parent.train(rows(500))
    child, fresh = parent.clone("L2", replace(parent.config, family="deepfm")), trainer_of("deepfm")
    assert torch.equal(child.model.mean, parent.model.mean)
    assert torch.equal(child.model.seen, parent.model.seen)
    assert torch.equal(child.model.table, fresh.model.table)
    assert torch.equal(optimiser_of(child).dense, optimiser_of(fresh).dense)


def test_auto_picks_cuda_exactly_when_there_is_one():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_trainer_on_a_gpu_learns_and_its_state_loads_on_the_cpu():
    trainer = Trainer(SCHEMA, CONFIG, 7, "L1", "cuda")
    trainer.train(rows(2000))
    unseen = rows(500, seed=99)
    scores = trainer.score(unseen.numbers, unseen.categories)
    assert log_loss(scores, unseen.label) < 0.3
    here = Trainer(SCHEMA, CONFIG, 7, "L1", "cpu")
    here.load(trainer.state())
    np.testing.assert_allclose(here.score(unseen.numbers, unseen.categories), scores, atol=1e-4)


@pytest.mark.parametrize("family", ["dcn", "logistic", "knn", "hoeffding_tree"])
def test_a_family_is_warmed_up_without_any_data(family):
    warm_up(SCHEMA, ModelConfig(family=family, batch_size=32))

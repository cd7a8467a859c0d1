import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from learners.batch import ACTIVATIONS, FAMILIES, Batch, ModelConfig, Schema
from learners.models import Counter, Net, build_model
from learners.models.base import SCALED_LIMIT, SCALER_ROWS
from learners.models.factorization import CrossNet, DeepFM, TwoTower, split_columns
from learners.models.linear import KernelSVM, LinearSVM
from learners.models.net import ACTIVATIONS as LAYERS
from learners.models.net import Linear, first_rows, uniform_cells
from tests.learner_rows import CONFIG, SCHEMA, auc, log_loss, rows, trainer_of

every_family = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str, seed: int = 7, schema: Schema = SCHEMA) -> Net | Counter:
    return build_model(schema, replace(CONFIG, family=family), seed)


def indexed(model: Counter, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return model.index(torch.from_numpy(batch.categories)).numpy(), batch.label


def shaken(family: str) -> Net | Counter:
    """A model whose every parameter is away from its start (many start at zero)."""
    model = model_of(family)
    if isinstance(model, Counter):
        batch = rows(2000)
        model.learn(*(torch.from_numpy(part) for part in (batch.numbers, *indexed(model, batch))))
        return model
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
        model.table.uniform_(-0.5, 0.5, generator=generator)
    model.observe(torch.from_numpy(rows(100).numbers), torch.from_numpy(rows(100).label))
    return model


@every_family
def test_a_model_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(family):
    before = torch.random.get_rng_state()
    first, second, other = (model_of(family, seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    if isinstance(model_of(family), Counter) or family in ("logistic", "svm"):
        return  # all of it starts at zero, whatever the seed
    assert not torch.equal(first["table"], other["table"])
    layers = [name for name in first if name.endswith("deep.0.weight")]
    assert layers or family == "rff_svm"
    assert not any(torch.equal(first[name], other[name]) for name in layers)


@every_family
def test_scores_are_probabilities_for_any_numbers_and_categories(family):
    model, batch = shaken(family), rows(6)
    batch.numbers[0] = np.nan
    batch.numbers[1] = np.inf
    batch.numbers[2] = -np.inf
    batch.numbers[3] = np.finfo(np.float32).max
    batch.categories[4] = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
    batch.categories[5] = 0
    scores = model.predict(batch.numbers, batch.categories)
    assert scores.dtype == np.float32
    assert scores.shape == (6,)
    assert ((scores > 0) & (scores < 1)).all()
    assert len(set(scores.tolist())) > 1


@every_family
def test_a_row_scores_the_same_alone_and_in_company(family):
    model, batch = shaken(family), rows(50)
    together = model.predict(batch.numbers, batch.categories)
    alone = [model.predict(batch.numbers[i : i + 1], batch.categories[i : i + 1])[0] for i in range(50)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@every_family
@pytest.mark.parametrize(
    "schema", [Schema(("a",), (), "x"), Schema((), ("c",), "x"), Schema(("a", "b"), ("c", "d", "e"), "x")]
)
def test_schemas_without_numbers_or_without_categories_work(family, schema):
    batch = rows(5, schema=schema)
    model = model_of(family, schema=schema)
    assert model.predict(batch.numbers, batch.categories).shape == (5,)
    assert model.predict(batch.numbers[:0], batch.categories[:0]).shape == (0,)


@every_family
def test_a_schema_without_any_column_is_the_users_error(family):
    with pytest.raises(UserError, match="no input"):
        model_of(family, schema=Schema((), (), "x"))


def test_wrong_column_counts_are_refused_even_where_broadcasting_would_work():
    model, batch = model_of("dcn"), rows(5)
    with pytest.raises(ValueError, match="wants"):
        model.predict(batch.numbers[:, :1], batch.categories)
    with pytest.raises(ValueError, match="wants"):
        model.predict(batch.numbers, batch.categories[:, :1])
    with pytest.raises(ValueError, match="wants"):
        model.predict(batch.numbers, batch.categories[:4])


def test_read_only_arrays_are_scored_without_a_warning():
    model, batch = model_of("dcn"), rows(5)
    expected = model.predict(batch.numbers, batch.categories)
    batch.numbers.setflags(write=False)
    batch.categories.setflags(write=False)
    np.testing.assert_array_equal(model.predict(batch.numbers, batch.categories), expected)


def test_a_missing_category_has_a_row_that_no_value_shares():
    model = build_model(SCHEMA, replace(CONFIG, rows=64), 7)
    generator = np.random.default_rng(1)
    values = generator.integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (5000, 2))
    index = model.index(torch.from_numpy(values)).numpy()
    assert set(index[:, 0]) == set(range(1, 64))
    assert set(index[:, 1]) == set(range(65, 128))
    assert model.index(torch.zeros(1, 2, dtype=torch.int64)).tolist() == [[0, 64]]
    one_row = build_model(SCHEMA, replace(CONFIG, rows=1), 7)
    assert one_row.index(torch.tensor([[5, 0], [0, 9]])).tolist() == [[0, 1], [0, 1]]


def test_running_statistics_equal_those_of_all_known_values_at_once():
    model, batch = model_of("dcn"), rows(1000)
    batch.numbers[5, 0] = np.inf  # not a value to learn from
    for start in range(0, 1000, 128):
        part = batch.slice(start, start + 128)
        model.observe(torch.from_numpy(part.numbers), torch.from_numpy(part.label))
    value = np.sign(batch.numbers) * np.log1p(np.abs(batch.numbers))
    value[~np.isfinite(value)] = np.nan
    np.testing.assert_allclose(model.mean, np.nanmean(value, 0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(model.var, np.nanvar(value, 0), rtol=1e-3)
    np.testing.assert_array_equal(model.count, np.isfinite(value).sum(0))
    np.testing.assert_array_equal(model.seen, [(batch.label == 0).sum(), (batch.label == 1).sum()])


def test_running_statistics_forget_so_that_a_changed_unit_is_followed():
    model = model_of("dcn")
    model.count = torch.full((3,), SCALER_ROWS)
    label = torch.zeros(1000)
    for _ in range(200):  # four memories of the new unit
        model.observe(torch.full((1000, 3), 1000.0), label)
    np.testing.assert_allclose(model.mean, np.full(3, np.log1p(1000.0)), rtol=0.03)


def test_a_column_that_was_unknown_so_far_keeps_its_start():
    model = model_of("dcn")
    model.observe(torch.full((10, 3), torch.nan), torch.zeros(10))
    assert model.mean.tolist() == [0, 0, 0]
    assert model.var.tolist() == [1, 1, 1]
    assert model.count.tolist() == [0, 0, 0]


def test_a_scaled_number_is_limited_and_an_unknown_one_is_the_mean():
    model = model_of("dcn")
    model.observe(torch.full((10, 3), 5.0), torch.zeros(10))
    scaled = model.scale(torch.tensor([[5.0, torch.nan, 1e30]]))
    assert scaled.tolist() == [[0.0, 0.0, SCALED_LIMIT]]


def test_the_base_rate_is_known_after_the_first_rows():
    model = model_of("dcn")
    label = torch.zeros(2000)
    label[:20] = 1
    model.observe(torch.zeros(2000, 3), label)
    score = model.predict(np.zeros((1, 3), np.float32), np.zeros((1, 2), np.int64))
    assert score[0] == pytest.approx(0.01, rel=0.3)


def test_deepfm_multiplies_every_pair_of_fields_once():
    model = shaken("deepfm")
    assert isinstance(model, DeepFM)
    scaled, embeddings = torch.randn(1, 3), torch.randn(1, 2, 4)
    vectors = [scaled[0, j] * model.directions[j] for j in range(3)] + [*embeddings[0]]
    expected = sum(vectors[i] @ vectors[j] for i in range(5) for j in range(i))
    assert isinstance(expected, torch.Tensor)
    assert model.pairs(scaled, embeddings).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_cross_net_is_the_published_formula_beside_a_net():
    model = shaken("dcn")
    assert isinstance(model, CrossNet)
    scaled, table_rows = torch.randn(1, 3), torch.randn(1, 2, 5)
    first = torch.cat((scaled[0], table_rows[0, :, 1:].flatten()))
    crossed = first
    for layer in model.crosses:
        assert isinstance(layer, Linear)
        crossed = first * (layer.weight @ crossed + layer.bias) + crossed
    both = torch.cat((crossed, model.deep(first[None])[0]))
    expected = model.output.weight[0] @ both + model.output.bias[0] + table_rows[0, :, 0].sum()
    assert model.head(scaled, table_rows).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_two_towers_meet_in_a_dot_product_only():
    """What one tower's columns change does not depend on that tower's own: mixed differences tell."""
    model = build_model(SCHEMA, replace(CONFIG, family="two_tower", tower=("rate", "card")), 7)
    assert isinstance(model, TwoTower)
    with torch.no_grad():
        for parameter in model.sides.parameters():
            parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    first, second = (side(torch.randn(1, 3), torch.randn(1, 2, 4)) for side in model.sides)
    assert first.shape == second.shape == (1, CONFIG.hidden[-1])
    scaled = torch.zeros(1, 3)
    embeddings = torch.randn(1, 2, 4)
    moved = embeddings.clone()
    moved[0, 1] += 1.0  # card, a column of the second tower
    assert torch.equal(model.sides[0](scaled, embeddings), model.sides[0](scaled, moved))
    assert not torch.equal(model.sides[1](scaled, embeddings), model.sides[1](scaled, moved))


def test_towers_share_the_columns_as_the_settings_say():
    assert split_columns(SCHEMA, ("rate", "card")) == (([0, 1], [0]), ([2], [1]))
    assert split_columns(SCHEMA, ()) == (([0, 1], [0]), ([2], [1]))
    with pytest.raises(UserError, match="'colour', which is no column"):
        split_columns(SCHEMA, ("colour",))
    with pytest.raises(UserError, match="every column"):
        split_columns(SCHEMA, (*SCHEMA.numbers, *SCHEMA.categories))


def test_random_features_approach_the_gaussian_kernel():
    config = replace(CONFIG, family="rff_svm", random_features=16384, kernel_width=0.7)
    model = build_model(SCHEMA, config, 7)
    assert isinstance(model, KernelSVM)
    inputs = torch.randn(6, 11, generator=torch.Generator().manual_seed(1))
    features = model.features(inputs)
    approached = features @ features.T / config.random_features
    kernel = torch.exp(-torch.cdist(inputs, inputs).square() / (2 * 11 * 0.7**2))
    torch.testing.assert_close(approached, kernel, atol=0.04, rtol=0)


def test_a_margin_learns_from_the_hinge_loss_alone_and_its_sigmoid_from_what_came_of_it():
    model = build_model(SCHEMA, replace(CONFIG, family="svm"), 7)
    assert isinstance(model, LinearSVM)
    numbers = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    table_rows = torch.zeros(8, 2, 1)
    with torch.no_grad():
        model.output.weight.fill_(100.0)
        assert (model.margins(numbers, table_rows).abs() > 1.0).all()
    label = (model.margins(numbers, table_rows) > 0).float()
    model.objective(numbers, table_rows, label).backward()
    assert model.output.weight.grad is not None
    assert (model.output.weight.grad == 0).all()
    assert model.sigmoid.grad is not None
    wrong = 1.0 - label
    model.zero_grad()
    model.objective(numbers, table_rows, wrong).backward()
    expected = ((2 * wrong - 1)[:, None] * model.scale(numbers)).mean(0)
    torch.testing.assert_close(model.output.weight.grad[0], -expected)


def test_an_svm_is_calibrated_as_it_learns():
    """Positives are rare, so they count more in the hinge loss; the sigmoid has to find the true rate again."""
    trainer = trainer_of("svm", positive_weight=15.0)
    batch = rows(6000)
    rare = batch.take((batch.label == 0) | (np.arange(6000) % 20 == 0))
    trainer.train(rare)
    scores = trainer.score(rare.numbers, rare.categories)
    assert rare.label.mean() < 0.1
    assert 0.5 < scores.mean() / rare.label.mean() < 2.0
    assert log_loss(scores, rare.label) < 0.9 * log_loss(np.full(len(rare), 0.05), rare.label)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_learns(activation):
    trainer, unseen = trainer_of("mlp", activation=activation), rows(500, seed=99)
    trainer.train(rows(3000))
    assert auc(trainer.score(unseen.numbers, unseen.categories), unseen.label) > 0.95
    assert isinstance(trainer.model, Net)
    kinds = {type(layer) for layer in trainer.model.modules()} & set(LAYERS.values())
    assert kinds == {LAYERS[activation]}


def test_the_first_rows_are_the_same_on_every_machine():
    """Checkpoints carry trained rows only, so these numbers are part of the format and must not change."""
    table = first_rows(seed=1, rows=np.arange(1000), width=3)
    assert table[1].tolist() == FIRST_ROW_OF_SEED_1
    assert (table[:, 0] == 0).all()
    assert abs(table[:, 1:].mean().item()) < 0.002
    assert table.abs().max().item() <= 0.05
    assert len(set(table[:, 1].tolist())) > 990


FIRST_ROW_OF_SEED_1 = [0.0, 0.031491197645664215, -0.021486222743988037]


def hashed(seed: int, cell: int) -> float:
    """splitmix64 in Python's own numbers, its first 24 bits."""
    bits = (cell * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95) % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return float((bits ^ bits >> 31) >> 40) / 2.0**24


@given(
    seed=st.integers(-(2**65), 2**65),
    index=st.lists(st.integers(0, 2**40), max_size=5),
    width=st.integers(1, 20),
    linear=st.integers(0, 3),
)
def test_first_rows_are_those_of_the_formula_bit_for_bit(seed, index, width, linear):
    unit = np.array([[hashed(seed, row * width + c) for c in range(width)] for row in index], np.float32)
    wanted = (unit.reshape(-1, width) * np.float32(2.0) - np.float32(1.0)) * np.float32(0.05)
    wanted[:, :linear] = 0.0
    np.testing.assert_array_equal(first_rows(seed, np.array(index, np.int64), width, linear).numpy(), wanted)
    cells = np.array(index, np.uint64)
    assert uniform_cells(seed, cells).tolist() == [hashed(seed, cell) for cell in index]


def test_settings_survive_json():
    config = ModelConfig(family="deepfm", hidden=(8,), rows=5, tower=("shop",))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Schema.from_dict(json.loads(json.dumps(SCHEMA.to_dict()))) == SCHEMA


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"family": "forest"}, "'forest'"),
        ({"optimiser": "lion"}, "'lion'"),
        ({"rows": 0}, "rows is 0"),
        ({"embedding": 0}, "embedding is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"hidden": [4, 0]}, "hidden"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"lr": 1.0}, "'lr'"),
        ({"rows": 10**15}, "rows is 1"),
        ({"hidden": [10**9]}, "hidden"),
        ({"activation": "swish"}, "'swish'"),
        ({"loss": "l3"}, "'l3'"),
        ({"schedule": "cyclic"}, "'cyclic'"),
        ({"family": "svm", "loss": "bce"}, "'bce' does not go with family 'svm'"),
        ({"loss": "hinge"}, "'hinge' does not go with family 'dcn'"),
        ({"nesterov": True}, "nesterov is true without momentum"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"trees": 1000}, "trees is 1000"),
        ({"split_confidence": 0.0}, "split_confidence"),
        ({"positive_weight": float("nan")}, "positive_weight"),
    ],
)
def test_impossible_settings_are_the_users_error_with_a_fix(setting, words):
    with pytest.raises(UserError, match=words) as caught:
        ModelConfig.from_dict(setting)
    assert caught.value.fix


def test_schemas_differ_by_names_order_and_meaning():
    other = [
        Schema(("count", "amount", "rate"), SCHEMA.categories, SCHEMA.fingerprint),
        Schema(("amount", "count"), ("rate", "shop", "card"), SCHEMA.fingerprint),
        Schema(SCHEMA.numbers, SCHEMA.categories, "fingerprint-2"),
    ]
    assert len({SCHEMA.hash, *(schema.hash for schema in other)}) == 4


def test_batches_slice_take_and_join():
    batch = rows(10)
    joined = Batch.concat([batch.slice(0, 4), batch.slice(4, 10), Batch.empty(SCHEMA)])
    assert joined.event_ids == batch.event_ids
    np.testing.assert_array_equal(joined.numbers, batch.numbers)
    odd = batch.take(np.arange(10) % 2 == 1)
    assert odd.event_ids == batch.take(np.array([1, 3, 5, 7, 9])).event_ids == batch.event_ids[1::2]
    np.testing.assert_array_equal(odd.categories, batch.categories[1::2])
    with pytest.raises(ValueError, match="shapes"):
        replace(batch, label=batch.label[:3])

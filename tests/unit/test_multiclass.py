"""Models of several classes: they learn, travel, come back, are measured right, and what cannot learn them says so."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from learners.batch import COUNTING_FAMILIES, FAMILIES, MARGIN_FAMILIES, Batch
from learners.fits import CLASS_FAMILIES
from learners.judge import Judge
from learners.late import real_share
from learners.metrics import class_metrics
from learners.models import build_model
from learners.prequential import Prequential
from learners.trainer import Trainer
from streams.task import load_task
from streams.task_size import whole_model_bytes
from tests.learner_rows import COLOURS, CONFIG, RICH, SCHEMA, class_rows, contents, trainer_of

CLASSES, RICH_CLASSES = replace(SCHEMA, target=COLOURS), replace(RICH, target=COLOURS)


def accuracy(trainer: Trainer, batch: Batch) -> float:
    return class_metrics(batch.label, trainer.score(batch.numbers, batch.categories))["accuracy"]


@pytest.mark.parametrize("family", ["dcn", "mlp", "logistic", *COUNTING_FAMILIES, *MARGIN_FAMILIES])
def test_families_learn_classes(family: str) -> None:
    trainer = trainer_of(family, schema=CLASSES)
    trainer.train(class_rows(6_000))
    batch = class_rows(1_000, 9)
    assert accuracy(trainer, batch) > 0.75
    scores = trainer.score(batch.numbers, batch.categories)
    assert scores.shape == (1_000, 3)
    np.testing.assert_allclose(scores.sum(1), 1.0, rtol=1e-5)
    assert scores.min() > 0.0


@pytest.mark.parametrize("family", CLASS_FAMILIES)
def test_every_family_starts_without_a_preference_and_takes_a_step(family: str) -> None:
    trainer = trainer_of(family, schema=RICH_CLASSES)
    numbers = np.zeros((40, len(RICH_CLASSES.numbers)), np.float32)
    ids = np.arange(40 * RICH_CLASSES.ids).reshape(40, -1)
    times = np.arange(40, dtype=np.int64)
    label = (np.arange(40) % 4 == 0).astype(np.float32)
    batch = Batch([""] * 40, times, times, numbers, ids, COLOURS.unknown(40), label)
    assert np.abs(trainer.score(numbers, ids) - 1 / 3).max() < 0.02
    scores = trainer.test_then_train(batch)
    assert scores.shape == (40, 3)
    never_seen = (
        1 / 3 if family in MARGIN_FAMILIES else 0.1
    )  # the hinge of the other margins reaches it slowly
    assert (scores[32:, 2] < never_seen).all()
    assert trainer.steps == 2
    sent = sum(tensor.numel() * tensor.element_size() for tensor in trainer.full().tensors.values())
    assert sent <= whole_model_bytes(trainer.config, RICH_CLASSES)


def test_class_weights_raise_what_is_rare_and_focal_learns_too() -> None:
    batch = class_rows(1_000, 9)
    found = {}
    for name, settings in (
        ("plain", {}),
        ("weighted", {"class_weights": (1.0, 1.0, 8.0)}),
        ("focal", {"loss": "focal"}),
    ):
        trainer = trainer_of("logistic", schema=CLASSES, **settings)
        trainer.train(class_rows(3_000))
        found[name] = trainer.score(batch.numbers, batch.categories)
        assert accuracy(trainer, batch) > 0.5
    assert found["weighted"][:, 2].mean() > 1.3 * found["plain"][:, 2].mean()
    assert found["focal"].max() < found["plain"].max()


def test_a_label_of_no_class_rejects_its_step() -> None:
    trainer = trainer_of(schema=CLASSES)
    trainer.train(class_rows(64))
    before = contents(trainer)
    for wrong in (3.0, -1.0, 0.5, np.nan):
        batch = class_rows(32, 1)
        batch.label[4] = wrong
        trainer.train(batch)
    assert trainer.dropped == 4
    assert contents(trainer) == before


labelled = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


@given(labelled)
def test_accuracy_and_f1_are_those_of_counting_by_hand(pairs: list[tuple[int, int]]) -> None:
    truth, said = (np.array(column) for column in zip(*pairs, strict=True))
    score = np.full((len(pairs), 3), 0.1)
    score[np.arange(len(pairs)), said] = 0.8
    found = class_metrics(truth.astype(np.float32), score)
    each = []
    for name in {*truth.tolist(), *said.tolist()}:
        hits = pairs.count((name, name))
        each.append(2 * hits / (truth.tolist().count(name) + said.tolist().count(name)))
    assert found["macro_f1"] == pytest.approx(sum(each) / len(each))
    right = sum(one == other for one, other in pairs)
    assert found["accuracy"] == pytest.approx(right / len(pairs))
    wrong = len(pairs) - right
    assert found["log_loss"] == pytest.approx(-(right * np.log(0.8) + wrong * np.log(0.1)) / len(pairs))


def test_a_score_that_is_no_number_is_wrong() -> None:
    score = np.array([[np.nan, 0.5, 0.5], [0.1, 0.8, 0.1]])
    found = class_metrics(np.array([0.0, 1.0]), score)
    assert found["accuracy"] == 0.5
    assert COLOURS.known(score).tolist() == [False, True]
    assert Judge(COLOURS, CONFIG).losses(np.array([0.0, 1.0]), score)[0] == pytest.approx(13.8, abs=0.1)


def test_a_window_of_classes_is_saved_and_goes_on() -> None:
    first, again = Prequential(50, target=COLOURS), Prequential(50, target=COLOURS)
    batch, score = class_rows(80), np.random.default_rng(0).dirichlet((1, 1, 1), 80).astype(np.float32)
    first.update("a", batch.label, score)
    again.load(first.state())
    assert again.row("a") == first.row("a")
    assert again.row("a")["n"] == 50
    assert again.row("nobody")["n"] == 0
    first.update("served", batch.label[:0], score[:0])  # nothing was served yet
    again.load(first.state())
    assert again.row("served")["n"] == 0


def test_a_histogram_of_classes_is_of_the_one_that_wins() -> None:
    score = np.eye(3)[[0, 1, 1, 2]]
    counts = COLOURS.histogram(score)
    assert counts[counts > 0].tolist() == [1, 2, 1]
    assert COLOURS.one(score).tolist() == [0.0, 1.0, 1.0, 2.0]


def test_a_default_counts_with_the_probability_of_its_class() -> None:
    """The formula of two classes, where the others are one."""
    served = np.array([[0.2, 0.5, 0.3], [np.nan, np.nan, np.nan]], np.float32)
    label, late = np.array([1.0, 1.0], np.float32), np.array([0.4, 0.4], np.float32)
    weight = real_share(label, served, late)
    assert weight[0] == pytest.approx(0.5 / (0.5 + 0.4 * 0.5))
    assert weight[1] == 1.0


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(CLASS_FAMILIES)))
def test_a_family_that_cannot_learn_classes_says_so(family: str) -> None:
    with pytest.raises(UserError, match=f"family '{family}' .* cannot learn a multiclass task"):
        build_model(CLASSES, replace(CONFIG, family=family), 1)


@pytest.mark.parametrize(
    "settings",
    [{"loss": "bce"}, {"positive_weight": 2.0}, {"recent_labels": (4,)}, {"class_weights": (1.0, 2.0)},
     {"class_weights": (1.0, 2.0, 0.0)}],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        build_model(CLASSES, replace(CONFIG, **settings), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"class_weights": (1.0, 2.0)}])
def test_settings_of_classes_are_refused_elsewhere(settings: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        build_model(load_task("clicks").schema, replace(CONFIG, **settings), 1)  # type: ignore[arg-type]

"""Families that read texts and images: each sees what a model without them, or with a bag of words, cannot."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from learners.batch import TEXT_FAMILIES, Batch, ModelConfig, Schema
from learners.blocks import PIXELS, Block
from learners.models.reader import Reader
from learners.trainer import Trainer
from tests.learner_rows import auc

TOKENS = 8
TEXT = Schema(("amount",), (), "f", (Block("comment", "text", TOKENS),))
SIDE = 8
IMAGE = Schema(("amount",), (), "f", (Block("photo", "image", SIDE * SIDE, shape=(SIDE, SIDE, 1)),))
CONFIG = ModelConfig(embedding=4, rows=64, hidden=(16,), units=12, batch_size=64, learning_rate=0.01)


def batch_of(ids: np.ndarray, label: np.ndarray) -> Batch:
    n = len(ids)
    numbers = np.random.default_rng(n).normal(0, 1, (n, 1)).astype(np.float32)
    moments, names = np.arange(n, dtype=np.int64), [f"e-{i}" for i in range(n)]
    served = np.full(n, 0.5, np.float32)
    return Batch(names, moments, moments, numbers, ids.astype(np.int64), served, label.astype(np.float32))


def texts(n: int, seed: int) -> Batch:
    """Texts of 4 to 8 words. Each has the words 1 and 2 side by side somewhere, and the label is which comes first."""
    random = np.random.default_rng(seed)
    words = random.integers(3, 9, (n, TOKENS))
    length = random.integers(4, TOKENS + 1, n)
    words[np.arange(TOKENS) >= length[:, None]] = 0
    at, label = random.integers(0, length - 1), random.integers(0, 2, n)
    words[np.arange(n), at], words[np.arange(n), at + 1] = 1 + label, 2 - label
    return batch_of(words, label)


def images(n: int, seed: int) -> Batch:
    """A bright line of 4 pixels somewhere in a dark noisy image; the label is whether it stands upright."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 80, (n, SIDE, SIDE), np.uint8)
    label = random.integers(0, 2, n)
    for image, upright in zip(pixels, label, strict=True):
        y, x = random.integers(0, 5, 2)
        image[y : y + (4 if upright else 1), x : x + (1 if upright else 4)] = 255
    return batch_of(pixels.reshape(n, -1).view("<i8"), label)


def trained(schema: Schema, family: str, batch: Batch) -> Trainer:
    trainer = Trainer(schema, replace(CONFIG, family=family), 7, "L1", "cpu")
    trainer.train(batch)
    return trainer


def auc_of(trainer: Trainer, unseen: Batch) -> float:
    return auc(trainer.score(unseen.numbers, unseen.categories), unseen.label)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_an_order_of_words_is_learned_that_no_bag_of_words_has(family: str) -> None:
    bag = trained(TEXT, "mlp", texts(6000, 1))
    reader = trained(TEXT, family, texts(6000, 1))
    unseen = texts(1000, 2)
    assert auc_of(bag, unseen) < 0.6
    assert auc_of(reader, unseen) > 0.9


def test_other_nets_see_a_text_as_a_bag_of_words() -> None:
    batch, unseen = texts(3000, 1), texts(1000, 2)
    for each in (batch, unseen):
        each.label[:] = (each.categories == 5).any(1)
    assert auc_of(trained(TEXT, "logistic", batch), unseen) > 0.9


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_zeros_behind_a_text_say_nothing(family: str) -> None:
    longer = replace(TEXT, blocks=(Block("comment", "text", TOKENS + 5),))
    batch, unseen = texts(300, 1), texts(200, 2)
    wide = [np.pad(each.categories, ((0, 0), (0, 5))) for each in (batch, unseen)]
    short = trained(TEXT, family, batch)
    long = trained(longer, family, replace(batch, categories=wide[0]))
    np.testing.assert_allclose(
        short.score(unseen.numbers, unseen.categories), long.score(unseen.numbers, wide[1]), rtol=1e-3
    )


def test_an_empty_text_is_a_vector_of_zeros() -> None:
    for family in TEXT_FAMILIES:
        trainer = trained(TEXT, family, texts(200, 1))
        model: Any = cast(Reader, trainer.model)
        numbers, index = model.inputs(np.zeros((1, 1), np.float32), np.zeros((1, TOKENS), np.int64))
        vector = model.encoders[0](model, numbers, model.scale(numbers), model.table[index])
        assert vector.shape == (1, model.encoders[0].width)
        assert not vector.any()


def test_an_image_is_learned_that_nothing_else_tells() -> None:
    blind = trained(IMAGE, "mlp", images(3000, 1))
    reader = trained(IMAGE, "image_cnn", images(3000, 1))
    unseen = images(1000, 2)
    assert auc_of(blind, unseen) < 0.6
    assert auc_of(reader, unseen) > 0.9


def test_pixels_reach_the_net_as_they_were_packed() -> None:
    shapes = ((4, 5, 3), (4, 4, 1))
    blocks = tuple(
        Block(f"photo{i}", "image", int(np.prod(shape)), shape=shape) for i, shape in enumerate(shapes)
    )
    schema = replace(IMAGE, categories=("shop",), blocks=(*TEXT.blocks, *blocks))
    model: Any = Trainer(schema, replace(CONFIG, family="image_cnn"), 7, "L1", "cpu").model
    random = np.random.default_rng(1)
    pixels = [random.integers(0, 256, (3, block.length), np.uint8) for block in blocks]
    packed = [np.pad(each, ((0, 0), (0, -each.shape[1] % PIXELS))).view("<i8") for each in pixels]
    ids = np.column_stack((random.integers(0, 9, (3, 1 + TOKENS)), *packed))
    numbers, _ = model.inputs(np.zeros((3, 1), np.float32), ids)
    seen = numbers[:, -sum(block.length for block in blocks) :].numpy()
    np.testing.assert_allclose((seen + 1) * 127.5, np.column_stack(pixels), atol=1e-4)
    assert [encoder.at for encoder in model.encoders] == [-60 - 16, -16]

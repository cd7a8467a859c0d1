"""Texts, lists and images from events to learned weights, through real Kafka: what is read, served, learned."""

import base64
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra.blobs import Blobs
from infra.clock import now_ms
from infra.kafka import read_all
from infra.settings import Settings, load_secret
from learners import checkpoint
from streams.feed import Item, feed
from streams.kept import recipe_of
from streams.privacy import Pseudonymiser
from streams.task import load_task
from streams.topics import Topics
from streams.wire import decode_labelled
from tests.system import run_support as runs

POSTS = """
[task]
name = "posts"
[event]
id = "post"
key = "author"
time = "at"
time_format = "epoch_ms"
[event.fields]
photo = { type = "image", height = 8, width = 8, required = false }
comment = { type = "text", tokens = 6 }
tags = { type = "list", items = 3, required = false }
[entities]
author = "author"
[label]
field = "bad"
delay = "1s"
window = "10m"
missing = "drop"
[[features]]
entity = "author"
windows = ["10m"]
aggregates = ["count"]
[serving]
allowed_lateness = "1h"
[model]
family = "image_cnn"
units = 8
hidden = [8]
rows = 256
batch_size = 8
learning_rate = 0.02
[challenger]
family = "text_cnn"
units = 4
hidden = [8]
rows = 256
"""
EVENTS, WORDS = 400, ("fine", "awful", "so", "so-so")


def picture(bright: bool, kind: str) -> bytes:
    out = BytesIO()
    Image.new("RGB", (20, 12), (220, 210, 200) if bright else (20, 30, 40)).save(out, kind)
    return out.getvalue()


def items(began_ms: int) -> list[Item]:
    """Posts whose label is whether their photo is bright, and the labels; a tenth has a photo that cannot be read."""
    chance, made = random.Random(5), []
    photos = {
        (bright, kind): picture(bright, kind) for bright in (True, False) for kind in ("JPEG", "PNG", "PPM")
    }
    for i in range(EVENTS):
        bright, at = chance.random() < 0.5, began_ms + i * 100
        photo = photos[bright, ("JPEG", "PNG", "PPM")[i % 3]]
        text = base64.b64encode(photo[:-30] if i % 10 == 9 else photo).decode()
        value: dict[str, Any] = {
            "post": f"p-{i}", "author": f"a-{i % 7}", "at": at, "photo": text,
            "comment": f"{chance.choice(WORDS)} {chance.choice(WORDS)}!", "tags": ["daily", str(i % 5)],
        }  # fmt: skip
        made.append(Item(at, "event", value["author"], value))
        made.append(Item(at + 1_000, "label", value["author"], {"post": f"p-{i}", "bad": int(bright)}))
    return sorted(made, key=lambda item: item.time_ms)


def test_contents_are_served_learned_and_refused(broker: Any, tmp_path: Path) -> None:
    path, data = tmp_path / "posts.toml", tmp_path / "data"
    path.write_text(POSTS)
    task, kafka = load_task(str(path)), broker.address
    more = {"DRIFTLINE_KAFKA": kafka}
    settings, good = Settings(kafka=kafka, data=data), EVENTS * 9 // 10
    store, prefix = Blobs(settings.blobs), f"learner/{task.name}"
    sent = items(now_ms() - EVENTS * 100)

    def learned() -> bool:
        found = checkpoint.load_newest(store, prefix).checkpoint
        return found is not None and found.meta["arena"]["counts"][0] == good

    runs.register(data, task, **more)
    with runs.running(data, "up", "--task", str(path), **more) as run:
        run.wait_for("Ctrl-C stops")
        feed(sent, len(sent), task, kafka)
        predictions = runs.await_predictions(kafka, task, {f"p-{i}" for i in range(EVENTS) if i % 10 != 9})
        runs.until(learned, "a checkpoint of everything")
        assert run.stop() == 0

    assert len(predictions) == good
    refused = runs.letters(kafka, task.name)
    reasons = [(head["driftline.reason"], head["driftline.detail"]) for _, head in refused]
    assert len(reasons) == EVENTS // 10
    assert all(reason == "invalid" and detail.startswith("photo is ") for reason, detail in reasons), reasons
    found = [decode_labelled(record.value) for record in read_all(kafka, Topics.of(task).labelled)]
    hidden = Pseudonymiser(load_secret(settings.secret))
    known = {hidden.one("comment", word) for word in ("fine", "awful", "so", "-", "!")}
    for labelled in found:
        ids, label = labelled.rows.categories, labelled.label
        words = ids[:, task.schema.columns("comment")]
        assert set(words[words != 0].tolist()) <= known
        assert (ids[:, task.schema.columns("tags")][:, :2] != 0).all()
        shown = np.ascontiguousarray(ids[:, task.schema.columns("photo")]).view(np.uint8)
        np.testing.assert_array_equal(shown.mean(1) > 128, label == 1)
    assert sum(len(labelled) for labelled in found) == good
    for record in read_all(kafka, Topics.of(task).examples):
        assert b"awful" not in (record.value or b"")

    newest = checkpoint.load_newest(store, prefix).checkpoint
    assert newest is not None
    arena = recipe_of(task).arena()
    arena.load(newest.files, newest.meta["arena"])
    probe = found[-1].batch()
    scores = arena.champion.score(probe.numbers, probe.categories)
    assert arena.champion.config.family == "image_cnn"
    assert scores[probe.label == 1].mean() > scores[probe.label == 0].mean() + 0.2  # it has learned to see

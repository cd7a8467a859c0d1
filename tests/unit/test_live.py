"""The models of a serving worker: the live one and a canary beside it, as updates come and after a restart."""

import asyncio
import json
import math
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from infra.clock import now_ms
from infra.metrics import Metrics
from infra.settings import Settings
from learners.canary import chosen
from learners.slot import encode_full, encode_refresh
from learners.trainer import Trainer
from streams.canary import Answer
from streams.heads import Head, Heads
from streams.live import LiveModel
from streams.parts import split
from streams.topics import META
from tests import learner_log as logs

TASK = logs.small_task()
ROWS = logs.labelled(TASK, 600).batch()
KEYS = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, len(ROWS))
SHARE = 0.3


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    return Settings(kafka="none:1", data=tmp_path / uuid4().hex, partitions=1)


def live(settings: Settings) -> LiveModel:
    return LiveModel(TASK, settings, "w-1", Metrics())


def trained(lineage: str, seed: int) -> Trainer:
    made = Trainer(TASK.schema, TASK.model, TASK.seed, lineage, "cpu")
    made.train(logs.labelled(TASK, 256, seed).batch())
    return made


def take(model: LiveModel, meta: dict[str, Any], payload: bytes) -> None:
    record = logs.Logged("t", 0, 0, 0, payload, headers=[(META, json.dumps(meta).encode())])
    assert asyncio.run(model._take(record)) is None


def take_parts(model: LiveModel, meta: dict[str, Any], payload: bytes, most: int = 1000) -> None:
    """An update that is larger than a record, as far as this model knows."""
    for headers, value in split(meta, payload, most):
        assert asyncio.run(model._take(logs.Logged("t", 0, 0, 0, bytes(value), headers=headers))) is None


def whole(trainer: Trainer, canary: float = 0.0) -> tuple[dict[str, Any], bytes]:
    trainer.advance(trainer.refresh)
    return encode_full(trainer, event_ms=1, created_ms=trainer.refresh + 1, canary=canary)


def serve(model: LiveModel) -> Answer:
    return model.serve(KEYS, ROWS.numbers, ROWS.categories)


def test_a_canary_serves_its_share_and_is_refreshed_and_the_others_go_on_as_before(
    settings: Settings,
) -> None:
    champion, canary, model = trained("L1", 1), trained("L2", 2), live(settings)
    take(model, *whole(champion))
    before = serve(model)
    assert set(before.versions) == {"L1.1"}
    assert not before.arm.any()
    take(model, *whole(canary, SHARE))
    answer, own = serve(model), chosen(KEYS, "L2", SHARE)
    assert [version == "L2.1" for version in answer.versions] == own.tolist()
    assert answer.arm.tolist() == np.where(own, 2, -2).tolist()
    np.testing.assert_array_equal(answer.scores[~own], before.scores[~own])
    np.testing.assert_array_equal(answer.scores[own], canary.score(ROWS.numbers[own], ROWS.categories[own]))
    for trainer, share in ((champion, 0.0), (canary, SHARE)):
        trainer.train(ROWS)
        take(model, *encode_refresh(trainer, event_ms=2, created_ms=9, canary=share))
    assert set(serve(model).versions) == {"L1.2", "L2.2"}


def test_updates_in_parts_are_taken_like_any_other(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.live.PART_BYTES", 1000)
    champion, canary, model = trained("L1", 1), trained("L2", 2), live(settings)
    for trainer, share in ((champion, 0.0), (canary, SHARE)):
        take_parts(model, *whole(trainer, share))
        trainer.train(ROWS)
    served, answer = model._slot.model, serve(model)
    assert set(answer.versions) == {"L1.1", "L2.1"}
    for trainer, share in ((champion, 0.0), (canary, SHARE)):
        meta, payload = encode_refresh(trainer, event_ms=2, created_ms=9, canary=share)
        assert len(payload) > 2000
        for headers, value in list(split(meta, payload, 1000))[:-1]:  # a learner that dies
            record = logs.Logged("t", 0, 0, 0, bytes(value), headers=headers)
            assert asyncio.run(model._take(record)) is None
        assert serve(model).versions == answer.versions
        take_parts(model, meta, payload)
        take_parts(model, meta, payload)  # and that sends it twice
        answer = serve(model)
    assert set(answer.versions) == {"L1.2", "L2.2"}
    assert model._slot.model is not served
    own = chosen(KEYS, "L2", SHARE)
    for rows, trainer in ((own, canary), (~own, champion)):
        scores = trainer.score(ROWS.numbers[rows], ROWS.categories[rows])
        np.testing.assert_array_equal(answer.scores[rows], scores)
    counted = model._metrics.snapshot()
    assert (counted["swaps_total"], counted["refreshes_total"]) == (2, 2)
    assert "rejected_updates_total{meta}" not in counted


def test_parts_of_a_damaged_update_are_refused_together(settings: Settings) -> None:
    model = live(settings)
    meta, payload = whole(trained("L1", 1))
    take_parts(model, meta, payload[:-1] + bytes([payload[-1] ^ 1]))
    assert model.version == "L1.0"
    assert json.loads(model._report.take("L1.0", 1))["refused"][0]["step"] == "bytes"
    take_parts(model, meta, payload)
    assert model.version == "L1.1"


def test_two_workers_and_one_that_starts_later_agree(settings: Settings) -> None:
    heads, first = Heads(live(settings)._heads._blobs, TASK.name), live(settings)
    for meta, payload in (whole(trained("L1", 1)), whole(trained("L2", 2), SHARE)):
        take(first, meta, payload)
        (heads.put_canary if "canary" in meta else heads.put)(Head(meta, payload, 5))
    late = live(settings)
    assert late.load() == 5
    assert serve(late).versions == serve(first).versions
    np.testing.assert_array_equal(serve(late).arm, serve(first).arm)
    heads.drop_canary()
    alone = live(settings)
    for model in (alone, late):  # also one that has loaded before, as a worker does to warm up
        model.load()
        assert set(serve(model).versions) == {"L1.1"}
        assert not serve(model).arm.any()


@pytest.mark.parametrize("winner", ["L1", "L2", "L3"])
def test_a_champion_that_is_sent_whole_ends_the_canary(winner: str, settings: Settings) -> None:
    arms, model = {f"L{i}": trained(f"L{i}", i) for i in (1, 2, 3)}, live(settings)
    take(model, *whole(arms["L1"]))
    take(model, *whole(arms["L2"], SHARE))
    take(model, *whole(arms[winner]))
    answer = serve(model)
    assert {version.partition(".")[0] for version in answer.versions} == {winner}
    assert not answer.arm.any()
    take(model, *encode_refresh(arms["L2"], event_ms=2, created_ms=1, canary=SHARE))  # of one that is over
    assert not serve(model).arm.any()


def test_a_worker_that_missed_the_end_of_a_canary_drops_it_when_it_catches_up(settings: Settings) -> None:
    model, champion = live(settings), trained("L1", 1)
    heads = Heads(model._heads._blobs, TASK.name)
    take(model, *whole(champion))
    meta, payload = whole(trained("L2", 2), SHARE)
    take(model, meta, payload)
    heads.put_canary(Head(meta, payload, 2))
    heads.put(Head(*whole(champion), 7))  # L1.2 ended the canary; the worker does not see it
    champion.train(ROWS)
    later = [encode_refresh(champion, event_ms=2, created_ms=9)]
    champion.train(ROWS)
    later.append(encode_refresh(champion, event_ms=2, created_ms=9))
    for dropped in (False, True):
        if dropped:
            heads.drop_canary()
            model._reload_due_ms = 0
        meta, payload = later[int(dropped)]
        record = logs.Logged("t", 0, 0, 0, payload, headers=[(META, json.dumps(meta).encode())])
        model._slot.load_full(*whole(trained("L1", 3)))  # it is behind once more
        assert asyncio.run(model._take(record)) == 7
        assert bool(serve(model).arm.any()) is not dropped
        assert model.version == "L1.2"


def test_a_canary_that_fails_its_checks_serves_nobody_and_is_reported(settings: Settings) -> None:
    model, canary = live(settings), trained("L2", 2)
    first, weights = whole(trained("L1", 1))
    assert math.isnan(model._metrics.snapshot()["model_age_ms"])
    take(model, first, weights)
    meta, payload = whole(canary, SHARE)
    take(model, meta, payload[:-1])
    assert set(serve(model).versions) == {"L1.1"}
    report = json.loads(model._report.take("L1.1", 1))
    assert [(each["version"], each["step"]) for each in report["refused"]] == [("L2.1", "bytes")]
    before, counted = now_ms(), model._metrics.snapshot()
    assert counted["rejected_updates_total{bytes}"] == counted["swaps_total"] == 1
    assert before <= counted["model_age_ms"] + first["created_ms"] <= now_ms()
    canary.train(ROWS)
    take(model, *encode_refresh(canary, event_ms=2, created_ms=9, canary=SHARE))
    assert set(serve(model).versions) == {"L1.1"}


@pytest.mark.parametrize("share", [0, 1.0, "0.1", True])
def test_a_share_that_cannot_be_is_refused(share: object, settings: Settings) -> None:
    model = live(settings)
    meta, payload = whole(trained("L2", 2))
    take(model, meta | {"canary": share}, payload)
    assert json.loads(model._report.take("L1.0", 1))["refused"][0]["step"] == "meta"


def test_what_a_canary_scored_is_reported_apart(settings: Settings) -> None:
    model = live(settings)
    take(model, *whole(trained("L1", 1)))
    take(model, *whole(trained("L2", 2), SHARE))
    serve(model)
    assert model._canary is not None
    own = int(chosen(KEYS, "L2", SHARE).sum())
    apart = json.loads(model._canary.report.take("L2.1", 1, canary=True))
    assert (apart["canary"], apart["scored"]["rows"]) == (True, own)
    assert json.loads(model._report.take("L1.1", 1))["scored"]["rows"] == len(KEYS) - own

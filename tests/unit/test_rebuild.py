"""Versions are made again from the ledger, the log and the nearest checkpoint; what is missing or differs is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.kafka import Record
from learners import checkpoint
from learners.entries import Steered, Steps, Version
from streams.kept import Kept
from streams.labelled import ListLog
from streams.lineage import explain, trained_on
from streams.outlet import ListOutlet
from streams.rebuild import CannotRebuild, find_version, ledger_of, rebuild
from streams.verify import CANNOT, DIFFERS, VERIFIED, compare
from tests import learner_log as logs

TASK = logs.small_task()
ROWS = 3_000


@pytest.fixture(scope="module")
def log() -> dict[int, list[Record]]:
    return logs.records(TASK, logs.labelled(TASK, ROWS))


@pytest.fixture
def run(tmp_path: Path, log: dict[int, list[Record]]) -> tuple[Kept, ListOutlet]:
    """A learner's whole life, in two parts, with checkpoints in it."""
    outlet = ListOutlet()
    half = {p: found[: len(found) // 2] for p, found in log.items()}
    logs.learner(TASK, tmp_path, half, outlet, at_once=3).run()
    learner = logs.learner(TASK, tmp_path, log, outlet, at_once=3)
    learner.run()
    return learner._kept, outlet


def versions(kept: Kept) -> list[Version]:
    return [line.entry for line in ledger_of(kept)[0] if isinstance(line.entry, Version)]


def forget_checkpoints(kept: Kept) -> None:
    for name in kept.store.list(f"{kept.checkpoints}/"):
        kept.store.delete(name)


def test_every_version_is_verified_from_the_beginning_and_from_checkpoints(run, log):
    kept, outlet = run
    known = versions(kept)
    assert {entry.version for entry in known} == {meta["version"] for meta, _ in outlet.updates}
    assert len({entry.lineage for entry in known}) > 1
    begun = set()
    for entry in known:
        code, facts = compare(TASK, kept, ListLog(log), entry.version)
        assert (code, facts["verdict"]) == (VERIFIED, "verified")
        assert facts["rebuilt"] == facts["published"] == entry.sha256
        begun.add(facts["begin"].partition(" ")[0])
    assert begun == {"the", "checkpoint"}
    forget_checkpoints(kept)
    code, facts = compare(TASK, kept, ListLog(log), known[-1].version)
    assert (code, facts["begin"], facts["steps"]) == (VERIFIED, "the beginning", known[-1].step)


def test_what_a_person_rolled_back_is_verified_too(run, log, tmp_path):
    kept, outlet = run
    learner = logs.learner(TASK, tmp_path, log, outlet)
    learner.start()
    training = learner.training
    asked = Steered(training.step, "rollback", "", "it looks wrong", {"by_hand": "me"}, 5, 6)
    learner._ledger.append(asked, 0)
    training.steer(asked)
    assert training.arena.champion.lineage == "L1"
    learner._ledger.close()
    code, facts = compare(TASK, kept, ListLog(log), training.arena.champion.version)
    assert (code, facts["step"]) == (VERIFIED, training.step)
    again = logs.learner(TASK, tmp_path, log, outlet)
    again.start()
    assert logs.digest(again.training.arena) == logs.digest(training.arena)
    assert again.training.arena.champion.chain == training.arena.champion.chain
    again._ledger.close()


def test_other_rows_give_another_version(run, log):
    kept, _ = run
    last = versions(kept)[-1]
    forget_checkpoints(kept)
    rows = logs.labelled(TASK, ROWS)
    rows.label[ROWS - 9] = 1 - rows.label[ROWS - 9]
    code, facts = compare(TASK, kept, ListLog(logs.records(TASK, rows)), last.version)
    assert (code, facts["verdict"]) == (DIFFERS, "differs")
    assert facts["rebuilt"] != facts["published"]
    rows = logs.labelled(TASK, ROWS)
    rows.label[7] = 1 - rows.label[7]  # the last lineage began later, without a parent
    code, facts = compare(TASK, kept, ListLog(logs.records(TASK, rows)), last.version)
    assert code == VERIFIED
    assert "on the way" in facts["reason"]


def cannot(kept: Kept, log: dict[int, list[Record]], version: str) -> str:
    code, facts = compare(TASK, kept, ListLog(log), version)
    assert (code, facts["verdict"]) == (CANNOT, "cannot be rebuilt")
    return str(facts["reason"])


def test_what_cannot_be_rebuilt_is_told_with_the_reason(run, log):
    kept, _ = run
    first, last = versions(kept)[0].version, versions(kept)[-1].version
    assert f"does not know L7.7: it has {first} to {last}" in cannot(kept, log, "L7.7")
    later = {p: found[3:] for p, found in log.items()}
    assert "partition 0 begins at" in cannot(kept, later, first)
    forget_checkpoints(kept)
    assert "no checkpoint is left from which the labelled topic has all rows" in cannot(kept, later, last)
    shorter = {p: found[:-3] for p, found in log.items()}
    assert "the labelled topic does not have all rows" in cannot(kept, shorter, last)
    with pytest.raises(CannotRebuild, match="features are others now"):
        rebuild(logs.small_task(more="calendar = false"), kept, last, ListLog(log), lambda *_: None)
    path = kept.ledger_path
    path.write_bytes(path.read_bytes().replace(b'"rows":[64', b'"rows":[63', 1))
    assert "is not what was written" in cannot(kept, log, last)
    path.unlink()
    for name in kept.store.list(f"{kept.ledger}/"):
        kept.store.delete(name)
    assert "it has no version" in cannot(kept, log, last)


def test_a_damaged_checkpoint_is_passed_over(run, log):
    kept, _ = run
    last = versions(kept)[-1].version
    newest = max(checkpoint.metas(kept.store, kept.checkpoints))
    kept.store.put(f"{kept.checkpoints}/{newest:012d}/buffer.npz", b"x")
    found = rebuild(TASK, kept, last, ListLog(log), lambda *_: None)
    assert (found.differs, found.begin == f"checkpoint {newest}") == (None, False)


def test_a_prediction_is_traced_to_its_rows(run, log):
    kept, _ = run
    lines, wrong = ledger_of(kept)
    assert wrong == ""
    last = versions(kept)[-1]
    prediction: dict[str, Any] = {"version": last.version}
    facts = explain(TASK, kept.store.url, lines, prediction, {0: 0, 1: 0})
    assert facts["version"]["sha256"] == last.sha256
    assert facts["learned"]["steps"] == [1, last.step]
    assert facts["learned"]["examples"] == ROWS
    assert facts["learned"]["event_time"] == [0, (ROWS - 1) * 1_000]
    assert facts["learned"]["offsets"] == {
        str(p): [[found[0].offset, 0], [found[-1].offset + 1, 0]] for p, found in log.items()
    }
    assert facts["learned"]["rows_are_there"]
    assert not explain(TASK, kept.store.url, lines, prediction, {0: 9, 1: 0})["learned"]["rows_are_there"]
    assert facts["lineages"][0]["lineage"] == last.lineage
    assert facts["lineages"][-1]["parent"] is None
    json.dumps(facts)
    unknown = explain(TASK, kept.store.url, lines, {"version": "L1.999"}, {0: 0, 1: 0})
    assert (unknown["version"], unknown["learned"], unknown["lineages"][0]["lineage"]) == (None, None, "L1")


def test_a_row_is_found_in_the_step_that_learned_it(run, log):
    kept, _ = run
    lines, _ = ledger_of(kept)
    steps = [line.entry for line in lines if isinstance(line.entry, Steps)]
    for partition, found in log.items():
        for record in found[::7]:
            count = len(logs.decode_labelled(record.value))
            told = [trained_on(lines, partition, record.offset, row) for row in range(count)]
            for row, each in enumerate(told):
                runs = next(
                    entry.runs[each["step"] - entry.step] for entry in steps
                    if entry.step <= each["step"] < entry.step + len(entry.rows)
                )  # fmt: skip
                assert any(
                    run.start <= (record.offset, row) < run.end for run in runs if run.partition == partition
                )
            _, first = find_version(lines, told[0]["first_version"], "")
            assert first.step >= told[0]["step"]
    assert trained_on(lines, 0, 10**6, 0)["step"] is None

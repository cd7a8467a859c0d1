"""[arena] and [tuning] of a task file: what is read, and what makes no sense."""

import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import UserError
from learners.budget import ArenaConfig
from learners.space import TuningConfig
from streams.task_parse import parse_task
from tests.stream_records import TRIPS, task

LINE = len(TRIPS.splitlines())
SPACE = "[tuning.space]\n"


def test_both_are_read_and_have_defaults() -> None:
    made = task("")
    assert (made.arena, made.tuning) == (ArenaConfig(), None)
    assert made.trained == (made.model, made.challenger)
    made = task("[arena]\nbudget = 0.5\nreserve_ms = 100\n[tuning]\n")
    assert made.arena == ArenaConfig(0.5, 100)
    rate = made.model.learning_rate
    assert made.tuning == TuningConfig(space={"learning_rate": {"min": rate / 10, "max": 10 * rate}})
    text = (
        "[tuning]\npopulation = 4\nrungs = 2\nevents = 500\nbudget = 0.1\n[tuning.space]\n"
        'learning_rate = { min = 0.001, max = 0.1 }\noptimiser = ["adam", "sgd"]\n'
        'hidden = [[64, 32], [16]]\nbatch_size = { min = 16, max = 256 }\nfamily = ["mlp", "knn"]\n'
    )
    made = task(text)
    assert made.tuning == TuningConfig(
        4, 2, 500, 0.1,
        {
            "learning_rate": {"min": 0.001, "max": 0.1}, "optimiser": ["adam", "sgd"], "hidden": [[64, 32], [16]],
            "batch_size": {"min": 16, "max": 256}, "family": ["mlp", "knn"],
        },
    )  # fmt: skip
    assert {config.family for config in made.trained} == {"dcn", "mlp", "knn"}
    assert not made.tuning.copies


@pytest.mark.parametrize(
    ("text", "at", "said", "fix"),
    [
        ("[arena]\nbudget = 1\n", 2, "arena: budget must be above 0 and below 1", "choose"),
        ("[arena]\nbudgets = 0.5\n", 2, "unknown key arena.budgets", 'did you mean "budget"'),
        ("[tuning]\npopulation = 1\n", 2, "tuning.population must be from 2 to 64", "for example"),
        ("[tuning]\nbudget = 0.9\n", 2, "tuning.budget 0.9 is above arena.budget 0.8", "write a smaller one"),
        (SPACE + "learning_rte = [1, 2]\n", 2, "unknown key tuning.space.learning_rte", "did you mean"),
        (SPACE + 'tower = ["a", "b"]\n', 2, "unknown key tuning.space.tower", "keys here are"),
        (SPACE + "learning_rate = 0.1\n", 2, "tuning.space.learning_rate must list at least two", "for example"),
        (SPACE + "learning_rate = [0.1]\n", 2, "tuning.space.learning_rate must list at least two", "for example"),
        (SPACE + "learning_rate = [0.1, 0.1]\n", 2, "tuning.space.learning_rate lists 0.1 twice", "name each"),
        (SPACE + "learning_rate = [0.1, -1]\n", 2, "tuning.space.learning_rate must be from 1e-09 to 10", "for"),
        (SPACE + "learning_rate = { min = 1, max = 1 }\n", 2, "tuning.space.learning_rate has min 1.0 and max", "min"),
        (SPACE + "learning_rate = { min = 1 }\n", 2, "tuning.space.learning_rate is no range", "write learning_rate"),
        (SPACE + "optimiser = { min = 1, max = 2 }\n", 2, "tuning.space.optimiser is no range", "list its values"),
        (SPACE + 'optimiser = ["adam", "adm"]\n', 2, 'tuning.space.optimiser is "adm"', 'did you mean "adam"'),
        (SPACE + "momentum = [0.5, 0.9]\n", 2, "tuning.space.momentum has no effect with optimiser", "remove this"),
        (SPACE + 'family = ["mlp", "gru"]\n', 2, "tuning.space: the family gru has nothing to read", "add last = 8"),
        (SPACE + 'family = ["mlp", "two_tower"]\n', 1, "tuning.space: two_tower needs its columns", "try it as"),
        (SPACE + "batch_size = [64, 512]\n", 1, "tuning.space: batch_size is above model.batch_size 256", "write at"),
        (SPACE + 'loss = ["bce", "hinge"]\n', 1, "tuning.space: model loss 'hinge' does not go with", "hinge is"),
        (
            SPACE + 'optimiser = ["adam", "ftrl"]\nschedule = ["constant", "step"]\n', 1,
            "tuning.space: ftrl follows no schedule, in optimiser", "leave ftrl",
        ),
        (
            SPACE + "".join(f"{key} = {list(range(1, 66))}\n" for key in ("embedding", "batch_size")), 1,
            "tuning.space has 4225 combinations, more than 4096", "list fewer",
        ),
        (
            '[model]\nfamily = "knn"\n[tuning]\n', 3,
            "tuning.space is missing, and the family knn has no learning rate", "add for",
        ),
        (
            '[model]\nfamily = "knn"\n[tuning.space]\nlearning_rate = [0.1, 0.2]\n', 4,
            "tuning.space.learning_rate has no effect with family", "remove this",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_line(text: str, at: int, said: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        task(text)
    assert caught.value.message.startswith(f"trips.toml:{LINE + at}: {said}"), caught.value.message
    assert caught.value.fix.startswith(fix), caught.value.fix


def test_a_space_whose_models_could_be_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.task_tuning.LARGEST_MODEL", 15 << 20)
    with pytest.raises(UserError, match=r"tuning\.space: a whole model would be too large") as caught:
        task(SPACE + "hidden = [[64], [4096, 4096]]\n")
    assert caught.value.fix.startswith("write")


def test_a_space_of_single_values_needs_a_table() -> None:
    with pytest.raises(UserError, match=r"tuning\.space must be a table"):
        task("[tuning]\nspace = 3\n")


def test_reading_it_loads_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "trips.toml"
    path.write_text(TRIPS + "[tuning]\n")
    assert parse_task(path.read_text(), "trips.toml", path).tuning is not None
    load = f"import sys; from streams.task import load_task; load_task({str(path)!r})"
    code = f"{load}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

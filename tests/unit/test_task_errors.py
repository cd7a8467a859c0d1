"""The exact words and the right line for whatever can be wrong with a task file; nothing else is raised."""

import re
from pathlib import Path

import pytest

from infra.errors import UserError
from streams.task import Task, load_task
from streams.task_parse import parse_task

HERE = Path(__file__).parent
SMALLEST = (HERE / "rides_smallest.toml").read_text(encoding="utf-8")  # nothing that could be left out
FULL = (HERE / "rides.toml").read_text(encoding="utf-8")  # every table, most keys


def parse(text: str) -> Task:
    return parse_task(text, "my.toml", Path("/somewhere/my.toml"))


def complaint(old: str, new: str) -> str:
    """What the user reads after replacing `old` by `new` in the full task file."""
    assert old in FULL, f"{old!r} is not in the file"
    with pytest.raises(UserError) as caught:
        parse(FULL.replace(old, new, 1))
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "fix"),
    [
        (
            "delay =",
            "dealy =",
            25,
            "unknown key label.dealy",
            'did you mean "delay"? keys here are field, id, time, delay, window, missing, late, late_for, '
            "in_memory, min, max",
        ),
        (
            "[serving]",
            "[servign]",
            56,
            "unknown key servign",
            'did you mean "serving"? keys here are task, event, entities, label, features, privacy, '
            "model, challenger, arena, tuning, drift, guard, trust, exploration, serving, topics",
        ),
        (
            "max_length",
            "maxlength",
            16,
            "unknown key event.fields.city.maxlength",
            'did you mean "max_length"? keys here are type, required, min, max, max_length, model, tokens, split, '
            "items, height, width, channels",
        ),
        (
            "family =",
            "colour =",
            44,
            "unknown key model.colour",
            "keys here are family, embedding, rows, table, admit_after, expire_after, hidden, activation, tower, "
            "recent_labels, optimiser, learning_rate, batch_size, smallest_batch, shards, "
            "spread_table, precision, replay, replay_rows, replay_keep, ewc, renew, weight_decay, clip_norm, momentum, "
            "nesterov, l1, l2, loss, "
            "positive_weight, class_weights, focal_gamma, schedule, schedule_steps, schedule_factor, warmup_steps, "
            "units, layers, random_features, kernel_width, neighbours, window, trees, leaves, grace, "
            "split_confidence",
        ),
        (
            "value =",
            "valeu =",
            31,
            "unknown key features.valeu",
            'did you mean "value"? keys here are entity, value, windows, aggregates, time_since_last, '
            "label_rate, decay, last",
        ),
        (
            "calendar = true",
            'calendar = "yes"',
            5,
            'task.calendar must be true or false, not "yes"',
            "for example calendar = true",
        ),
        (
            "min = 0",
            'min = "0"',
            14,
            'event.fields.fare.min must be a number, not "0"',
            "for example min = 0",
        ),
        (
            "hidden = [16]",
            "hidden = 16",
            45,
            "model.hidden must be a list of at most 16 layer sizes from 1 to 8192",
            "for example hidden = [64, 32]",
        ),
        (
            "learning_rate = 0.01",
            "learning_rate = inf",
            46,
            "model.learning_rate must be a finite number, not inf",
            "for example learning_rate = 0.002",
        ),
        (
            'type = "number", min = 0, max = 500',
            'type = "numbr"',
            14,
            'event.fields.fare.type is "numbr"',
            'did you mean "number"? use one of number, category, text, list, image',
        ),
        (
            "max_length = 20",
            "min = 1",
            16,
            "event.fields.city.min has no meaning for a category",
            'remove it, or write type = "number"',
        ),
        (
            "fare = {",
            "fare = 'number' # {",
            14,
            'event.fields.fare must be a table, not "number"',
            'for example fare = { type = "number" }',
        ),
        (
            "max = 500",
            "max = -1",
            14,
            "event.fields.fare.max = -1 is below min = 0",
            "swap the two",
        ),
        (
            'window = "2h"',
            'window = "59m"',
            26,
            'label.window "59m" closes before labels are due (label.delay "1h")',
            'write window = "1h" or longer',
        ),
        (
            'window = "2h"',
            'window = "2 hours"',
            26,
            'label.window must be a duration such as "500ms", "30s", "10m", "24h" or "7d", not "2 hours"',
            'for example window = "2h"',
        ),
        (
            'delay = "1h"',
            'delay = "99999d"',
            25,
            'label.delay must be from 0s to 3650d, not "99999d"',
            'for example delay = "1h"',
        ),
        (
            'windows = ["1h", "7d"]',
            'windows = [\n  "1h",\n  "0d",\n]',
            34,
            'a window of "0d" cannot be cut into 8 equal tiles of whole milliseconds',
            'use "8ms" or any whole number of seconds',
        ),
        (
            'time_format = "epoch_s"',
            'time_format = "epoch"',
            11,
            'event.time_format is "epoch"',
            'did you mean "epoch_s"? use iso8601, epoch_ms, epoch_s or a strptime pattern such as '
            "%d/%m/%Y %H:%M:%S",
        ),
        (
            'time_format = "epoch_s"',
            'time_format = "%Y-%Q"',
            11,
            "event.time_format is \"%Y-%Q\": 'Q' is a bad directive in format '%Y-%Q'",
            "use iso8601, epoch_ms, epoch_s or a strptime pattern such as %d/%m/%Y %H:%M:%S",
        ),
        (
            'time_format = "epoch_s"',
            'time_format = "%H:%M:%S"',
            11,
            'event.time_format "%H:%M:%S" does not say which day it is',
            "a pattern needs year, month and day, such as %Y-%m-%d",
        ),
        (
            'value = "fare"',
            'value = "city"',
            33,
            'the aggregate "mean" needs a number field, and city is a category',
            "of a category use distinct or last; count stands in a table without value",
        ),
        (
            'entity = "rider"',
            'entity = "ridr"',
            37,
            "features need the name of an entity, not 'ridr'",
            'did you mean "rider"? known entities: driver, rider',
        ),
        (
            "alpha = 0.05",
            "segment_share = 0.2",
            52,
            "drift.segment_share has no effect without task.segments",
            "remove this line, or name a category in task.segments, one of city",
        ),
        (
            'key = "driver"',
            'key = "driver_id"',
            9,
            'event.key is "driver_id", and no entity reads that field',
            'add a line such as user = "driver_id" as the first under [entities]',
        ),
        (
            'driver = "driver"\nrider = "rider"',
            'rider = "rider"\ndriver = "driver"',
            20,
            "entity driver reads event.key and must come first",
            'move driver = "driver" up to be the first under [entities]',
        ),
        (
            'rider = "rider"',
            'rider = "driver"',
            20,
            'entities driver and rider both read "driver"',
            "remove one of the two",
        ),
        (
            'rider = "rider"',
            'Rider = "rider"',
            20,
            '"Rider" is not a name for an entity',
            "use 1 to 40 of a-z, 0-9 and _, a letter first, for example customer",
        ),
        (
            'id = "ride_id"',
            'id = "driver"',
            8,
            'event.id and entities.driver both read "driver"',
            "name a field that differs from event to event as id, and one for each other use",
        ),
        (
            "fare = {",
            "at = {",
            14,
            "at is event.time and cannot be a model field as well",
            "remove this line; calendar = true under [task] gives the model hour and weekday",
        ),
        (
            "city = { type",
            'driver = { type = "category", required = false }\ncity = { type',
            16,
            "driver is event.key and cannot be optional",
            "write required = true",
        ),
        (
            "city = { type",
            'rider = { type = "number" }\ncity = { type',
            16,
            "rider is entities.rider and cannot be a number",
            'write type = "category"',
        ),
        (
            'field = "complained"',
            'field = "city"',
            23,
            'label.field "city" is also read from the event, so the model would see the answer',
            "the label comes later, on the labels topic; remove it from the event's fields",
        ),
        (
            'missing = "drop"',
            "missing = 0.5",
            27,
            "label.missing is 0.5",
            'use 0, 1 or "drop"',
        ),
        (
            'pseudonymise = ["ride_id"]',
            'pseudonymise = ["ride_ids"]',
            41,
            'privacy.pseudonymise lists "ride_ids", which is no category and no event.id',
            'did you mean "ride_id"? it may list ride_id, city, driver, rider',
        ),
        (
            'ignore = ["fare"]',
            'ignore = ["far"]',
            54,
            'drift.ignore lists "far", which is no column of the model',
            'did you mean "fare"? columns are fare, hour_sin, hour_cos, weekday_sin, weekday_cos, '
            "driver_fare_mean_1h, driver_fare_ratio_1h, driver_fare_mean_7d, driver_fare_ratio_7d, "
            "driver_label_rate_7d, rider_time_since_last, city",
        ),
        (
            "tip = {",
            "rider_time_since_last = { type = 'number' } #",
            15,
            'two model columns are called "rider_time_since_last"',
            "rename the field or the entity",
        ),
        (
            "alpha = 0.05",
            "alpha = 1.0",
            52,
            "drift: alpha must be above 0 and below 1",
            "choose a value within that limit",
        ),
        (
            'policy = "manual"',
            'policy = "beter"',
            53,
            'drift.policy is "beter"',
            'did you mean "better"? use one of drift, better, always, manual, shadow',
        ),
        (
            'commit_every = "5ms"',
            'dedup = "0s"',
            59,
            'serving.dedup must be from 1s to 3650d, not "0s"',
            'for example dedup = "24h"',
        ),
        (
            'commit_every = "5ms"',
            'commit_every = "0s"',
            59,
            'serving.commit_every must be from 1ms to 3650d, not "0s"',
            'for example commit_every = "1ms"',
        ),
        (
            'name = "rides"\n',
            "",
            1,
            "task.name is missing",
            'add a line such as name = "my-stream" under [task]',
        ),
        (
            'missing = "drop"\n',
            "",
            22,
            "label.missing is missing",
            'add missing = 0 (no label means "no"), missing = 1, or missing = "drop" (learn nothing from it)',
        ),
    ],
)
def test_a_complaint_names_file_line_and_fix(old: str, new: str, line: int, message: str, fix: str) -> None:
    assert complaint(old, new) == f"my.toml:{line}: {message}\n  fix: {fix}"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('field = "complained"', "field = complained", 23),
        ('metric = "auc"', 'metric = "auc', 4),
        ('commit_every = "5ms"\n', 'commit_every = ["5ms"', 59),
        ("min = 0", "min = 0, min = 1", 14),
        ("[privacy]", "[label]", 40),
    ],
)
def test_a_syntax_error_names_the_line(old: str, new: str, line: int) -> None:
    said, fix = complaint(old, new).split("\n  fix: ")
    assert said.startswith(f"my.toml:{line}: this is not valid TOML: ")  # the rest is the words of tomllib
    assert (
        fix == "write it as TOML: name = value, text in double quotes, [table] headers on a line of their own"
    )


@pytest.mark.parametrize("table", ["task", "event", "label"])
def test_a_missing_table_comes_with_an_example(table: str) -> None:
    text = re.sub(rf"(?s)\[{table}\]\n.*?(?=\n*\[)", "", SMALLEST)
    with pytest.raises(UserError) as caught:
        parse(text)
    assert caught.value.message == f"my.toml:1: the table [{table}] is missing"
    assert caught.value.fix.startswith(f"add it, for example: [{table}] with ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for given_name, expected in [
        (
            "click",
            'there is no task "click"\n  fix: did you mean "clicks"? built-in tasks are clicks, transac',
        ),
        (
            str(tmp_path / "no.toml"),
            f'there is no task "{tmp_path}/no.toml"\n  fix: built-in tasks are clicks, ',
        ),
        (
            str(tmp_path),
            f"{tmp_path} cannot be read: Is a directory\n  fix: give the path of a readable .toml file",
        ),
        ("a\0b", "a\0b cannot be read: embedded null byte\n"),
    ]:
        with pytest.raises(UserError) as caught:
            load_task(given_name)
        assert str(caught.value).startswith(expected)
    bad = tmp_path / "latin.toml"
    bad.write_bytes('[task]\nname = "caf\xe9"\n'.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        load_task(bad)
    assert str(caught.value) == f"{bad}:2: this is not UTF-8 text\n  fix: save the file as UTF-8"
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UserError, match="is larger than 1048576 bytes"):
        load_task(big)

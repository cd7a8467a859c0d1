"""The task file: what the built-in ones say, what every key becomes, and that the reference is true."""

import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from dataclasses import fields, replace
from pathlib import Path

import pytest

from featurestore.spec import WINDOW_AGGREGATES
from infra.errors import UserError
from learners.batch import ModelConfig
from learners.budget import ArenaConfig
from learners.drift import DriftConfig
from learners.rollback import GuardConfig
from learners.trust import TrustConfig
from streams import task_event, task_parse, task_tuning
from streams.events import EventDecoder, LabelDecoder
from streams.exploration import Exploration
from streams.privacy import Pseudonymiser
from streams.task import CALENDAR, Entity, Field, Serving, Task, load_task
from streams.task_parse import parse_task
from streams.task_toml import duration_ms
from streams.topics import Topics

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SMALLEST = (HERE / "rides_smallest.toml").read_text(encoding="utf-8")  # nothing that could be left out
FULL = (HERE / "rides.toml").read_text(encoding="utf-8")  # every table, most keys


def parse(text: str) -> Task:
    return parse_task(text, "my.toml", Path("/somewhere/my.toml"))


def test_the_smallest_file_has_seventeen_lines_and_sensible_defaults() -> None:
    task = parse(SMALLEST)
    assert (task.name, task.kind, task.metric, task.calendar) == ("rides", "binary", "auc", False)
    assert task.event.time_format == "iso8601"
    assert task.event.fields == (Field("driver", "category", model=False),)
    assert task.label.id == "ride_id"
    assert (task.label.delay_ms, task.label.window_ms, task.label.missing) == (3_600_000, 7_200_000, 0.0)
    assert (task.model, task.drift) == (ModelConfig(), DriftConfig())
    faster = replace(ModelConfig(), learning_rate=3 * ModelConfig().learning_rate)
    assert (
        task.challenger == faster
    )  # a copy of the champion that learns as the champion does cannot be better
    assert task.serving == Serving()
    assert task.numbers == ("driver_count_1h",)
    assert task.categories == ()
    assert task.privacy.pseudonymise == {"driver"}


def test_every_key_arrives() -> None:
    task = parse(FULL)
    assert task.event.fields == (
        Field("fare", "number", min=0.0, max=500.0),
        Field("tip", "number", required=False, model=False),
        Field("city", "category", max_length=20),
        Field("driver", "category", model=False),
        Field("rider", "category", model=False),
    )
    assert task.entities == (Entity("driver", "driver"), Entity("rider", "rider"))
    assert (task.label.time, task.label.missing) == ("known_at", None)
    assert task.number_fields == ("fare", "tip")
    assert task.numbers == (
        "fare",
        *CALENDAR,
        "driver_fare_mean_1h",
        "driver_fare_ratio_1h",
        "driver_fare_mean_7d",
        "driver_fare_ratio_7d",
        "driver_label_rate_7d",
        "rider_time_since_last",
    )
    assert task.categories == ("city",)
    assert task.allowed == ("ride_id", "at", "fare", "tip", "city", "driver", "rider")
    assert task.privacy.pseudonymise == {"city", "driver", "rider", "ride_id"}
    assert (task.model.family, task.model.hidden, task.model.learning_rate) == ("deepfm", (16,), 0.01)
    assert (task.challenger.family, task.challenger.learning_rate) == ("deepfm", 0.03)
    assert (task.drift.alpha, task.drift.policy, task.drift.ignore) == (0.05, "manual", ("fare",))
    usual = parse(FULL.replace('ignore = ["fare"]', "")).drift
    assert usual.ignore == (*CALENDAR, "driver_label_rate_7d")
    assert task.serving.guarantee == "at_least_once"
    assert (task.serving.allowed_lateness_ms, task.serving.commit_every_ms) == (1_800_000, 5)
    assert (task.path, task.text) == (Path("/somewhere/my.toml"), FULL)
    assert (task.schema.numbers, task.schema.fingerprint) == (task.numbers, task.schema_hash)


def test_transactions_reads_the_handbook_and_not_its_leak() -> None:
    task = load_task("transactions")
    assert task.allowed == ("TRANSACTION_ID", "TX_DATETIME", "TX_AMOUNT", "CUSTOMER_ID", "TERMINAL_ID")
    assert "TX_FRAUD_SCENARIO" not in task.allowed
    assert task.categories == ()  # no identity in the model
    assert task.metric == "average_precision"
    day = 86_400_000
    assert (task.label.field, task.label.delay_ms, task.label.window_ms) == ("TX_FRAUD", 7 * day, 8 * day)
    assert {"terminal_label_rate_1d", "customer_TX_AMOUNT_mean_7d", "customer_count_30d"} <= {*task.numbers}


def test_clicks_has_users_and_items() -> None:
    task = load_task("clicks")
    assert [entity.name for entity in task.entities] == ["user", "item"]
    assert task.categories == ("item_id", *(f"user_feature_{i}" for i in range(4)))
    assert (task.label.delay_ms, task.label.window_ms, task.label.missing) == (0, 600_000, 0.0)
    assert {"user_label_rate_24h", "item_label_rate_24h"} <= {*task.numbers}


def test_a_name_and_its_file_are_the_same_task() -> None:
    named = load_task("clicks")
    assert named.path.is_absolute()
    assert load_task(named.path).schema_hash == named.schema_hash
    assert load_task(str(named.path)).text == named.text


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "rides.toml"
    file.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert load_task(file).schema_hash == parse(FULL).schema_hash


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("max = 500", "max = 900", True),
        ('policy = "manual"', 'policy = "better"', True),
        ('name = "rides"', 'name = "trips"', True),
        ("learning_rate = 0.01", "learning_rate = 0.02", True),
        ('windows = ["1h", "7d"]', 'windows = ["1h", "8d"]', False),
        ("calendar = true", "calendar = false", False),
        ('rider = "rider"', 'rider = "passenger"', False),
        ("max_length = 20", "model = false", False),
        ('time_format = "epoch_s"', 'time_format = "epoch_ms"', False),
        ('window = "2h"', 'window = "3h"', False),  # a label rate depends on it
    ],
)
def test_the_schema_hash_changes_with_the_meaning_of_a_row_only(old: str, new: str, same: bool) -> None:
    assert (parse(FULL.replace(old, new, 1)).schema_hash == parse(FULL).schema_hash) is same


def test_without_a_label_rate_the_label_is_not_in_the_schema_hash() -> None:
    changed = SMALLEST.replace('window = "2h"', 'window = "3h"')
    assert parse(changed).schema_hash == parse(SMALLEST).schema_hash


def test_loading_a_task_needs_nothing_heavy() -> None:
    code = (
        "import sys; from streams.task import load_task; load_task('clicks');"
        "print([m for m in ('torch', 'feast', 'river', 'faust', 'pyarrow', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_time_format_that_names_zones_is_refused() -> None:
    with pytest.raises(UserError, match="has %Z, and names of zones are not unique"):
        parse(FULL.replace('"epoch_s"', '"%Y-%m-%d %Z"'))
    assert parse(FULL.replace('"epoch_s"', '"%Y-%m-%d %%Z %z"')).event.time_format == "%Y-%m-%d %%Z %z"


def test_the_rows_hash_knows_every_column_on_the_way() -> None:
    full = parse(FULL)
    fewer = parse(FULL.replace("tip = ", "tips = "))
    assert (fewer.schema_hash, fewer.rows_hash != full.rows_hash) == (full.schema_hash, True)
    assert parse(FULL.replace("learning_rate = 0.01", "learning_rate = 0.02")).rows_hash == full.rows_hash


REFERENCE = (ROOT / "docs" / "task-file.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of the reference in one language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", REFERENCE)


def section(title: str) -> dict[str, str]:
    """Key → default of the table under a heading of the reference."""
    text = REFERENCE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"(?m)^\| `(\w+)` \| [^|]* \| ([^|]*) \|", text)
    return {key: default.strip().strip("`") for key, default in rows}


def test_the_reference_names_every_key_and_every_choice() -> None:
    for title, keys in [
        ("`[task]`", task_parse.TASK),
        ("`[event]`", [key for key in task_parse.EVENT if key != "fields"]),
        ("`[event.fields]`", task_event.FIELD),
        ("`[label]`", task_parse.LABEL),
        ("`[[features]]`", task_parse.FEATURES),
        ("`[privacy]`", task_parse.PRIVACY),
        ("`[model]` and `[challenger]`", [field.name for field in fields(ModelConfig)]),
        ("`[arena]`", [field.name for field in fields(ArenaConfig)]),
        ("`[tuning]`", task_tuning.TUNING),
        ("`[drift]`", [field.name for field in fields(DriftConfig)]),
        ("`[guard]`", [field.name for field in fields(GuardConfig)]),
        ("`[trust]`", [field.name for field in fields(TrustConfig)]),
        ("`[exploration]`", [field.name for field in fields(Exploration)]),
        ("`[serving]`", task_parse.SERVING),
        ("`[topics]`", task_parse.TOPICS),
    ]:
        assert list(section(title)) == list(keys), title
    words = {*task_event.TIME_FORMATS, *task_event.TYPES, *WINDOW_AGGREGATES}
    words |= {choice for choices in task_parse.CHOICES.values() for choice in choices}
    assert [word for word in sorted(words) if not re.search(rf'[`"]{word}[`"]', REFERENCE)] == []


def test_the_reference_has_the_true_defaults() -> None:
    configs: list[
        tuple[str, ModelConfig | DriftConfig | GuardConfig | ArenaConfig | TrustConfig | Exploration]
    ] = [
        ("`[exploration]`", Exploration()),
        ("`[arena]`", ArenaConfig()),
        ("`[model]` and `[challenger]`", ModelConfig()),
        ("`[drift]`", DriftConfig()),
        ("`[guard]`", GuardConfig()),
        ("`[trust]`", TrustConfig()),
    ]
    for title, config in configs:
        written = {key: tomllib.loads(f"x = {text}")["x"] for key, text in section(title).items()}
        usual = {field.name: getattr(config, field.name) for field in fields(config)}
        assert written == {key: list(v) if isinstance(v, tuple) else v for key, v in usual.items()}
    usual = vars(Serving())
    for key, text in section("`[serving]`").items():
        value = tomllib.loads(f"x = {text}")["x"]
        assert usual.get(f"{key}_ms", usual.get(key)) == (duration_ms(str(value)) or value)


def test_the_task_files_of_the_reference_load_and_read_its_records() -> None:
    files = [text for text in blocks("toml") if text.startswith("[task]") or "\n[task]" in text]
    smallest, deliveries = map(parse, files)
    assert smallest.numbers
    topics = Topics.of(deliveries)
    assert (topics.events, topics.labels, topics.predictions) == (
        "shop.orders", "shop.handovers", "deliveries.predictions",
    )  # fmt: skip
    record = namedtuple("record", "value timestamp partition offset")
    events, labels = blocks("json")
    now_ms = 1_800_000_000_000
    hidden = Pseudonymiser(b"0" * 32)
    sent = [record(line.encode(), now_ms, 0, at) for at, line in enumerate(events.splitlines())]
    rows, broken = EventDecoder(deliveries, hidden).decode(sent)
    assert (len(rows), broken) == (2, [])
    sent = [record(line.encode(), now_ms, 0, at) for at, line in enumerate(labels.splitlines())]
    known, broken = LabelDecoder(deliveries, hidden).decode(sent)
    assert (known.ids, known.label.tolist(), broken) == (rows.ids, [1.0, 0.0], [])
    assert set(REFERENCE.split("The columns of the model are then")[1].split("```")[1].split()[1:]) == {
        *deliveries.numbers,
        *deliveries.categories,
    }

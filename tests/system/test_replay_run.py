"""`driftline replay` as a run of its own: real files, a stream nobody here has seen, stop and resume, bad input."""

import csv
import json
import random
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.clickhouse import open_archive
from streams.task import load_task
from tests.system import run_support as runs

LOANS = """
[task]
name = "loans"
metric = "auc"
calendar = true

[event]
id = "application no"
key = "borrower"
time = "filed"
time_format = "%d.%m.%Y %H:%M:%S"

[event.fields]
amount = { type = "number", min = 0 }
"income (k)" = { type = "number", required = false }
purpose = { type = "category" }

[entities]
borrower = "borrower"
branch = "branch"

[label]
field = "defaulted"
time = "settled"
delay = "2d"
window = "9d"
missing = "drop"

[[features]]
entity = "borrower"
value = "amount"
windows = ["7d", "30d"]
aggregates = ["mean", "ratio", "max"]

[[features]]
entity = "branch"
windows = ["1d", "7d"]
aggregates = ["count"]
time_since_last = true
label_rate = ["7d"]
"""
COUNT = 4_000


def head(source: Path, target: Path, count: int) -> Path:
    """A slice of a Parquet file."""
    with pq.ParquetFile(source) as file:
        table = pa.Table.from_batches([next(file.iter_batches(count))])
    pq.write_table(table, target)
    return target


def loans(folder: Path) -> Path:
    """A CSV of loan applications, out of order by a little, whose labels come between one and five days later."""
    rng, at = random.Random(9), datetime(2023, 5, 1, tzinfo=UTC)
    rows = []
    for number in range(COUNT):
        at += timedelta(seconds=rng.randint(1, 600))
        amount = rng.lognormvariate(3, 1)
        branch = rng.randrange(12)
        bad = rng.random() < (0.5 if branch < 3 or amount > 60 else 0.05)
        settled = at + timedelta(days=rng.uniform(1, 5))
        row = {
            "application no": f"A/{number}",
            "filed": f"{at:%d.%m.%Y %H:%M:%S}",
            "borrower": f"Bürger {rng.randrange(900)}",
            "branch": branch,
            "amount": f"{amount:.2f}",
            "income (k)": "" if number % 7 == 0 else rng.randrange(100),
            "purpose": rng.choice(["house", "car", "n/a"]),
            "defaulted": int(bad),
            "settled": f"{settled:%d.%m.%Y %H:%M:%S}",
            "iban": "DE00",
        }
        rows.append(row)
    path = folder / "loans.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def check_run(run: runs.Run, task: str, events: int, out: Path, before: int = 0) -> None:
    """A replay that ended well: its report, its figures, and its history in the archive, with `before` from earlier."""
    assert run.ended(2 * runs.PATIENCE_S) == 0, run.output
    assert "Traceback" not in run.output
    assert runs.processes(run.data) == {}
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["predictions"], summary["doubled"], summary["dead_letters"]) == (events, 0, 0)
    assert summary["events"] == events
    assert "<html" in (out / "report.html").read_text()
    logs = {path.name: path.read_text() for path in (run.data / "logs").glob("*.log")}
    assert [name for name, text in logs.items() if "Traceback" in text] == []
    archive = open_archive(f"chdb://{run.data}/archive")
    try:
        rows = archive.query(
            "SELECT task, count(), count(DISTINCT event_id) FROM predictions FINAL GROUP BY task"
        )
        assert rows == [(task, before + events, before + events)]
        measured = "SELECT count() FROM metrics FINAL WHERE arm = 'served' AND auc > 0 AND auc < 1"
        assert archive.query(measured)[0][0] >= 1
        assert archive.query("SELECT count() FROM labels FINAL")[0][0] > 500
    finally:
        archive.close()


def test_the_handbook_s_transactions(tmp_path: Path, data_dir: Path) -> None:
    file = head(data_dir / "transactions-2018-04_07.parquet", tmp_path / "head.parquet", 8_000)
    runs.register(tmp_path / "data", load_task("transactions"))
    with runs.running(tmp_path / "data", "replay", str(file), "--task", "transactions") as run:
        check_run(run, "transactions", 8_000, tmp_path)


def test_the_open_bandit_clicks(tmp_path: Path, data_dir: Path) -> None:
    file = head(data_dir / "clicks-open-bandit-men.parquet", tmp_path / "head.parquet", 8_000)
    options = ("--task", "clicks", "--map", "user_id=user_feature_0")
    runs.register(tmp_path / "data", load_task("clicks"))
    with runs.running(tmp_path / "data", "replay", str(file), *options) as run:
        check_run(run, "clicks", 8_000, tmp_path)
    # Every row has a label, and the ten minutes of its window pass in milliseconds: none may lose that race.
    archive = open_archive(f"chdb://{tmp_path}/data/archive")
    try:
        sources = dict(archive.query("SELECT source, count() FROM labels FINAL GROUP BY source"))
    finally:
        archive.close()
    assert set(sources) == {"label"}
    assert sources["label"] > 7_900  # the last ten minutes are still open when the file ends


def test_a_stream_nobody_has_seen_stopped_and_resumed(tmp_path: Path) -> None:
    file, task, data = loans(tmp_path), tmp_path / "loans.toml", tmp_path / "data"
    task.write_text(LOANS)
    checked = runs.driftline(data, "task", "check", str(task))
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "task loans" in checked.stdout
    position = tmp_path / "position.json"
    options = ("replay", str(file), "--task", str(task), "--resume", str(position), "--speed")
    with runs.running(data, *options, "60000") as run:
        run.wait_for("events sent")
        runs.until(lambda: sent(position) > 1_000, "a part of the file")
        assert run.stop(signal.SIGINT) == 0
        first = json.loads((tmp_path / "summary.json").read_text())
        assert first["events"] == first["predictions"]
        assert 0 < first["events"] < COUNT
    with runs.running(data, *options, "max") as run:
        check_run(run, "loans", COUNT - first["events"], tmp_path, before=first["events"])


def sent(position: Path) -> int:
    return int(json.loads(position.read_bytes())["sent"]) if position.exists() else 0


@pytest.fixture
def bad_inputs(tmp_path: Path) -> dict[str, str]:
    """What is typed → what is said."""
    (tmp_path / "loans.toml").write_text(LOANS)
    (tmp_path / "no_key.csv").write_text("application no,filed\n1,01.01.2023 00:00:00\n")
    (tmp_path / "wrong.parquet").write_bytes(b"PAR1 is not enough")
    (tmp_path / "broken.toml").write_text(LOANS.replace("windows", "window"))
    return {
        "absent.csv --task clicks": "absent.csv",
        "no_key.csv --task loans.toml": "borrower",
        "wrong.parquet --task loans.toml": "wrong.parquet",
        "no_key.csv --task nothing": "nothing",
        "no_key.csv --task broken.toml": "broken.toml:",
    }


def test_bad_input_is_one_message_without_a_traceback(tmp_path: Path, bad_inputs: dict[str, str]) -> None:
    for typed, said in bad_inputs.items():
        done = runs.driftline(tmp_path / "data", "replay", *typed.split())
        assert done.returncode in (1, 2), typed
        assert said in done.stderr, (typed, done.stderr)
        assert "Traceback" not in done.stderr + done.stdout
        assert done.stderr.count("error:") == 1, (typed, done.stderr)
        assert "fix: " in done.stderr, (typed, done.stderr)
    assert not (tmp_path / "data" / "kafka").exists()

"""What a command does not need it does not import: a start is waited for by people, by recovery and by every run here.

torch takes two seconds of a processor and hundreds of megabytes, Feast (with torch) six, pandas and numba with scipy
half of one each.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from faust.worker import Worker

HEAVY = {
    "chdb",
    "fastapi",
    "faust",
    "feast",
    "fsspec",
    "kafka",
    "numba",
    "pandas",
    "pyarrow",
    "river",
    "torch",
}
# Commands, one after the other in one process, and all that is heavy and may be loaded then.
LOADED = {
    "--help": set[str](),
    "task check clicks": set[str](),
    "models list": {"fsspec"},
    "archive --kafka nowhere": {"faust", "fsspec", "kafka", "pyarrow"},
    "join --kafka nowhere": {"faust", "fsspec", "kafka", "pyarrow"},
}
MODELS = {
    "learn --kafka nowhere": {"kafka", "pyarrow", "torch"},
    "serve --kafka nowhere": {"faust", "kafka", "numba", "pyarrow", "torch"},
}
# Each command as it is typed, but a role ends where it would first ask Kafka, and writes and reads a record instead.
PROGRAM = """
import sys
from streams import cli

def stop(task, settings):
    from streams.wire import Rows, decode_rows, encode_rows
    decode_rows(encode_rows(Rows.empty(task)))
    sys.exit()

for command in sys.argv[1:]:
    sys.argv[1:] = command.split()
    if "--kafka" in sys.argv:
        from streams import prepare
        prepare.prepare = stop
    try:
        cli.main()
    except SystemExit:
        print("LOADED", *sys.modules)
"""


@pytest.mark.parametrize("loaded", [LOADED, MODELS], ids=["light", "models"])
def test_nothing_heavy_is_imported_that_is_not_needed(loaded: dict[str, set[str]], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *loaded], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    seen = [set(line.split()) & HEAVY for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert dict(zip(loaded, seen, strict=True)) == loaded, done.stderr


def test_the_nap_at_a_worker_s_end_that_is_left_out_is_still_called_so() -> None:
    assert callable(Worker._sentinel_task)

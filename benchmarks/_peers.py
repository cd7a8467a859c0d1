"""The programs that Driftline is compared with, and the environment of one that is none of our dependencies.

quixstreams gets a virtual environment of its own under `.driftline/peers`, so that its dependencies and ours do not
meet; torch and numpy come from our own environment, whose packages it sees behind its own.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT
from infra.disk import usable
from infra.errors import UserError
from streams.task import Task

QUIXSTREAMS = "quixstreams==3.28.1"
PEERS = ROOT / ".driftline" / "peers"
_INSTALL_S = 180.0


def write_plan(
    path: Path, task: Task, *, kafka: str, group: str, events: str, predictions: str, partitions: int
) -> None:
    """The file that tells a peer what to read, what to write and which model to score with."""
    plan: dict[str, Any] = {
        "kafka": kafka,
        "group": group,
        "events": events,
        "predictions": predictions,
        "partitions": partitions,
        "state": str(path.with_suffix("")),
        "schema": task.schema.to_dict(),
        "model": task.model.to_dict(),
        "seed": task.seed,
    }
    path.write_text(json.dumps(plan))


def quix_python() -> str:
    """The Python that has quixstreams, made when it is missing. Raises UserError when that fails."""
    home, python = PEERS / "quixstreams", PEERS / "quixstreams" / "bin" / "python"
    done = home / "ready"
    if done.exists() and done.read_text() == QUIXSTREAMS and python.exists():
        return str(python)
    uv = str(Path(sys.executable).with_name("uv"))
    with usable(PEERS, "free some space"):
        PEERS.mkdir(parents=True, exist_ok=True)
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)])
        _run([uv, "pip", "install", "--quiet", "--python", str(python), QUIXSTREAMS])
        paths = sysconfig.get_path("purelib")
        site = next((home / "lib").glob("python*")) / "site-packages"
        (site / "driftline-torch.pth").write_text(f"{paths}\n")
        done.write_text(QUIXSTREAMS)
    return str(python)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(
            f"cannot install {QUIXSTREAMS}: {error}", "run `make` once, or check the network"
        ) from error
    if done.returncode:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()), "uv says nothing"
        )
        raise UserError(f"cannot install {QUIXSTREAMS}: {reason.strip()}", "check the network")

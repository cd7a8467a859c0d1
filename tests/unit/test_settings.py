"""Settings out of the environment, and the key for pseudonyms that is made once."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from infra.settings import SECRET_BYTES, KafkaTools, Settings, Worker, kafka_tools, load_secret, this_worker


def test_what_is_not_set_has_a_default_below_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_env({})
    data = tmp_path / ".driftline"
    assert settings.kafka == ""
    assert settings.data == data
    assert settings.archive == f"chdb://{data}/archive"
    assert settings.blobs == f"file://{data}/blobs"
    assert settings.online == "sqlite"
    assert settings.partitions == 4
    assert settings.secret == data / "secret.key"
    assert settings.log_dir == data / "logs"


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert Settings.from_env(dict.fromkeys(Settings.from_env({}).to_env(), "")) == Settings.from_env({})


def test_a_home_folder_may_be_written_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.from_env({"DRIFTLINE_DATA": "~/d", "DRIFTLINE_SECRET": "~/key"})
    assert (settings.data, settings.secret) == (tmp_path / "d", tmp_path / "key")


WORD = st.text("abcxyz019-_. ", min_size=1).map(lambda text: f"w{text}w")


@given(
    kafka=st.sampled_from(["", "localhost:9092", "a:1,b:2"]),
    data=WORD,
    archive=st.sampled_from(["", "chdb:///a b/archive", "clickhouse://u:p@h:9000/db"]),
    blobs=st.sampled_from(["", "file:///x", "s3://bucket/prefix", "memory://m"]),
    online=st.sampled_from(["sqlite", "redis://h:6379"]),
    partitions=st.integers(1, 1000),
    secret=st.just("") | WORD,
    metrics=st.sampled_from(["", "localhost:9464"]),
)
def test_a_child_process_gets_an_equal_value(
    kafka: str, data: str, archive: str, blobs: str, online: str, partitions: int, secret: str, metrics: str
) -> None:
    settings = Settings(kafka, Path(data), archive, blobs, online, partitions, Path(secret), metrics=metrics)
    assert Settings.from_env(settings.to_env()) == settings
    assert settings.data.is_absolute()
    assert settings.secret.is_absolute()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DRIFTLINE_ARCHIVE", "postgres://host/db"),
        ("DRIFTLINE_BLOBS", "/a/folder"),
        ("DRIFTLINE_ONLINE", "dynamo"),
        ("DRIFTLINE_METRICS", "9464"),
        ("DRIFTLINE_METRICS", "localhost:http"),
        ("DRIFTLINE_METRICS", "localhost:65536"),
        ("DRIFTLINE_PARTITIONS", "0"),
        ("DRIFTLINE_PARTITIONS", "-1"),
        ("DRIFTLINE_PARTITIONS", "four"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(variable: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        Settings.from_env({variable: value})
    assert variable in caught.value.message
    assert value in caught.value.message
    assert caught.value.fix.startswith("use ")


def test_where_kafka_comes_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given_all = {
        "XDG_CACHE_HOME": str(tmp_path),
        "DRIFTLINE_KAFKA_JARS": str(tmp_path / "libs"),
        "DRIFTLINE_MAVEN": "http://mirror.example/maven/",
        "DRIFTLINE_JAVA": "java17",
        "JAVA_HOME": "jdk",
    }
    assert KafkaTools.from_env(given_all) == KafkaTools(
        tmp_path / "driftline", tmp_path / "libs", "http://mirror.example/maven", "java17", "jdk"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert KafkaTools.from_env({}) == KafkaTools(tmp_path / ".cache" / "driftline")
    for name, value in given_all.items():
        monkeypatch.setenv(name, value)
    assert kafka_tools() == KafkaTools.from_env(given_all)


def test_what_faust_starts_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Worker.from_env({}) == Worker("serve", "clicks")
    monkeypatch.setenv("DRIFTLINE_ROLE", "join")
    monkeypatch.setenv("DRIFTLINE_TASK", "rides.toml")
    monkeypatch.setenv("DRIFTLINE_KAFKA", "broker:9092")
    worker, settings = this_worker()
    assert worker == Worker("join", "rides.toml")
    assert settings.kafka == "broker:9092"


def test_the_secret_is_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "data" / "secret.key"
    first = load_secret(path)
    assert len(first) == SECRET_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_secret(path) == first
    assert load_secret(tmp_path / "other.key") != first


def test_all_who_ask_for_the_secret_at_once_get_the_same(tmp_path: Path) -> None:
    askers, folder = 8, tmp_path / "data"
    together = Barrier(askers)

    def ask(_: int) -> bytes:
        together.wait()
        return load_secret(folder / "secret.key")

    with ThreadPoolExecutor(askers) as pool:
        assert len(set(pool.map(ask, range(askers)))) == 1
    assert [path.name for path in folder.iterdir()] == ["secret.key"]


def test_a_damaged_secret_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    path.write_bytes(b"short")
    with pytest.raises(UserError, match="holds 5 bytes") as caught:
        load_secret(path)
    assert "backup" in caught.value.fix
    assert path.read_bytes() == b"short"


def test_a_folder_that_cannot_be_made_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot use .*data") as caught:
        load_secret(tmp_path / "data" / "secret.key")
    assert "DRIFTLINE_SECRET" in caught.value.fix

"""Feast objects generated from a task, and the writer that keeps Feast's online store up to date.

Serving never reads from Feast: it reads its own memory and writes here, behind the stream, the newest row
of each entity. Any Feast client then reads the values that were served. Feast is imported only where it is
used, because that takes seconds; with the embedded store, writing does not need it at all.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurestore.packed import PackedTables, table_name
from featurestore.spec import Feature, View
from infra.errors import UserError
from infra.settings import Settings

if TYPE_CHECKING:
    from feast import Entity, FeatureService, FeatureStore, FeatureView

    from featurestore.redis_rows import RedisRows

PROJECT = "driftline"
"""The Feast project of every task; views and services carry the task's name."""

_NOTE = "applied.json"

FeastObjects = tuple[list["Entity"], list["FeatureView"], "FeatureService"]


def view_name(task_name: str, entity: str) -> str:
    """The feature view of an entity of a task; Feast's names take no hyphens."""
    return f"{task_name}_{entity}".replace("-", "_")


def feast_objects(task_name: str, entities: Sequence[str], views: Mapping[str, View]) -> FeastObjects:
    """The Feast objects of a task: entities, a view for each entity with features, a service of all views.

    The join key of an entity is INT64 and holds its pseudonym. Rows do not expire in Feast (a ttl of 0): the
    windows themselves say how old an event may be. Past rows come from the archive.
    """
    from datetime import timedelta

    from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
    from feast.types import Float32, Int64

    from featurestore.history import PastView
    from featurestore.offline import ArchiveSource

    feast_entities, feast_views = [], []
    for name in entities:
        if name not in views:
            continue
        full, key = view_name(task_name, name), f"{name}_key"
        past = PastView(task_name, name, views[name].fingerprint, views[name].columns)
        entity = Entity(name=name, join_keys=[key], value_type=ValueType.INT64)
        fields = [Field(name=key, dtype=Int64), *(Field(name=c, dtype=Float32) for c in views[name].columns)]
        view = FeatureView(
            name=full,
            entities=[entity],
            ttl=timedelta(0),
            schema=fields,
            online=True,
            source=PushSource(name=f"{full}_rows", batch_source=ArchiveSource.of(f"{full}_past", past)),
            description=f"The newest feature row of each {name} of the task {task_name}, as it was served.",
            tags={"task": task_name, "definition": views[name].fingerprint},
        )
        feast_entities.append(entity)
        feast_views.append(view)
    return (
        feast_entities,
        feast_views,
        FeatureService(name=task_name.replace("-", "_"), features=list(feast_views)),
    )


class FeatureWriter:
    """Registers a task's features with Feast and writes their newest rows.

    Everything lies under `<data>/feast`: `registry.db`, `online.db` for the embedded store, and a
    `feature_store.yaml`, so that `feast -c <data>/feast ...` and `FeatureStore("<data>/feast")` work as
    they are.

    Args:
        data: the folder of everything that is kept here, absolute.
        online: where the newest rows go: "sqlite", or "redis://HOST:PORT".
        task_name: the task.
        views: its views by entity.
        archive: address of the archive, where Feast finds past rows; "" for the embedded one in `data`.
    """

    def __init__(
        self, data: Path, online: str, task_name: str, views: Mapping[str, View], archive: str = ""
    ) -> None:
        self._home, self._online, self._task, self._views = data / "feast", online, task_name, dict(views)
        self._archive = archive or Settings(kafka="", data=data).archive
        self._tables = PackedTables(self._home / "online.db") if online == "sqlite" else None
        self._redis: RedisRows | None = None
        self._store: FeatureStore | None = None

    def apply(self) -> None:
        """Registers the task's views and service, and makes their tables.

        Several processes may call it at once: they take turns, and who finds it done does nothing. Readers
        never see half a registry.
        """
        self._home.mkdir(parents=True, exist_ok=True)
        with _locked(self._home / "apply.lock"):
            if self._is_applied():
                return
            has_password = "@" in self._archive + self._online
            _write_atomically(self._home / "feature_store.yaml", self._yaml(), private=has_password)
            entities, views, service = feast_objects(self._task, list(self._views), self._views)
            registry, draft = self._home / "registry.db", self._home / "registry.draft"
            if registry.exists():
                shutil.copyfile(registry, draft)
            else:
                draft.unlink(missing_ok=True)
            self._open(draft).apply([*entities, *views, service])
            # Feast writes the registry in place, so that a reader could meet half of it.
            os.replace(draft, registry)
            self._remember_applied()

    def write(
        self,
        entity: str,
        keys: NDArray[np.int64],
        times_ms: NDArray[np.int64],
        rows: NDArray[np.float32],
    ) -> None:
        """Stores rows f32[n, F] of entities i64[n] at event times i64[n] ms, the newest row an entity.

        A row that is older than the stored one is dropped; one of the same time replaces it.
        """
        view, columns = view_name(self._task, entity), self._views[entity].columns
        if rows.shape != (len(keys), len(columns)):
            raise ValueError(f"{view} has {len(columns)} columns: rows of the shape {rows.shape} do not fit")
        if self._tables is not None:
            self._tables.write(table_name(PROJECT, view, columns), keys, times_ms, rows)
        else:
            self._redis_rows().write(view, f"{entity}_key", columns, keys, times_ms, rows)

    def read(self, entity: str, keys: NDArray[np.int64]) -> dict[str, list[float | None]]:
        """Each column of the entity's view for these keys, read as any Feast client does; None = unknown
        key. Raises UserError for a task that nobody has registered.
        """
        from feast.errors import FeatureViewNotFoundException

        if self._store is None:
            self._store = self._open(self._home / "registry.db")
        view, columns = view_name(self._task, entity), self._views[entity].columns
        try:
            found = self._store.get_online_features(
                features=[f"{view}:{column}" for column in columns],
                entity_rows={f"{entity}_key": keys.tolist()},
            ).to_dict()
        except FeatureViewNotFoundException as error:
            raise UserError(
                f"the features of {self._task} are not registered with Feast in {self._home}",
                "start `driftline up`, or run `driftline features apply`",
            ) from error
        return {column: found[column] for column in columns}

    def close(self) -> None:
        """Closes the embedded store's file; nothing is lost without it."""
        if self._tables is not None:
            self._tables.close()

    def _redis_rows(self) -> "RedisRows":
        if self._redis is None:
            from redis import Redis

            from featurestore.redis_rows import RedisRows

            self._redis = RedisRows(Redis.from_url(self._online), PROJECT)
        return self._redis

    def _config(self) -> dict[str, Any]:
        if self._tables is not None:
            store = {"type": "featurestore.online.PackedSqliteOnlineStore", "path": "online.db"}
        else:
            store = {"type": "redis", "connection_string": self._online.removeprefix("redis://")}
        return {
            "project": PROJECT,
            "provider": "local",
            "registry": "registry.db",
            "online_store": store,
            "offline_store": {
                "type": "featurestore.offline.ArchiveOfflineStore",
                "archive": self._archive,
            },
            # Of rows with one time Feast's own choice would be any; ours is the last.
            "materialization": {"pull_latest_features": True},
            "entity_key_serialization_version": 3,
        }

    def _yaml(self) -> str:
        # JSON is YAML too. The embedded archive is named from here, so that the data folder can move.
        config = self._config()
        if self._archive == f"chdb://{self._home.parent}/archive":
            config["offline_store"]["archive"] = "chdb://../archive"
        return json.dumps(config, indent=2) + "\n"

    def _open(self, registry: Path) -> "FeatureStore":
        from feast import FeatureStore, RepoConfig

        config = {**self._config(), "registry": str(registry)}
        return FeatureStore(config=RepoConfig(**config, repo_path=self._home))

    def _definition(self) -> dict[str, Any]:
        return {"online": self._online, "views": {name: asdict(view) for name, view in self._views.items()}}

    def _is_applied(self) -> bool:
        """Whether registry and settings are those that a call with the same definitions left behind."""
        noted, settings = _read_note(self._home), self._home / "feature_store.yaml"
        if not settings.exists() or settings.read_text() != self._yaml():
            return False
        # Through JSON, where a tuple is a list.
        definition = json.loads(json.dumps(self._definition()))
        return bool(
            noted["registry"] == self._registry_mark() and noted["tasks"].get(self._task) == definition
        )

    def _remember_applied(self) -> None:
        # Importing Feast takes seconds, which this note saves at every later start of a worker.
        tasks = _read_note(self._home)["tasks"] | {self._task: self._definition()}
        _write_atomically(self._home / _NOTE, json.dumps({"registry": self._registry_mark(), "tasks": tasks}))

    def _registry_mark(self) -> list[int]:
        path = self._home / "registry.db"
        return [path.stat().st_mtime_ns, path.stat().st_size] if path.exists() else []


def applied_views(home: Path) -> dict[str, dict[str, View]]:
    """Task name → views of the tasks that were registered under `home`, the folder of registry.db."""
    return {
        task: {
            name: View(view["entity"], tuple(Feature(**f) for f in view["features"]), view["tiles"])
            for name, view in noted["views"].items()
        }
        for task, noted in _read_note(home)["tasks"].items()
    }


def _read_note(home: Path) -> dict[str, Any]:
    """What is registered (task → its definition) and the registry that held it; nothing, if there is no
    note.
    """
    try:
        note: dict[str, Any] = json.loads((home / _NOTE).read_text())
    except (OSError, ValueError):
        return {"registry": None, "tasks": {}}
    return note


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the file's lock, which ends with the process at the latest."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_atomically(path: Path, text: str, *, private: bool = False) -> None:
    draft = path.with_name(path.name + ".draft")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600 if private else 0o666)
    draft.write_text(text)
    os.replace(draft, path)

"""Feast's way to the packed rows: an online store that any `feature_store.yaml` can name by class path.

    online_store:
      type: featurestore.online.PackedSqliteOnlineStore
      path: online.db

Feast loads the class beside it with the same name and the ending "Config". Only Feast imports this module,
since importing Feast takes seconds.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from feast.types import Float32, Int64

from featurestore.packed import PackedTables, table_name
from infra.errors import UserError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class PackedSqliteOnlineStoreConfig(FeastConfigBaseModel):
    """Settings of the store; a relative path starts at the folder of feature_store.yaml."""

    type: Literal["featurestore.online.PackedSqliteOnlineStore"] = (
        "featurestore.online.PackedSqliteOnlineStore"
    )
    path: str = "online.db"


class PackedSqliteOnlineStore(OnlineStore):
    """Views with one INT64 join key and Float32 features, one packed row an entity.

    The newest event time of an entity wins, and of equal times the row written last. A null is stored as NaN.
    """

    def __init__(self) -> None:
        self._files: dict[Path, PackedTables] = {}

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Feast's way to write (`push`, `write_to_online_store`, `materialize`); our own is PackedTables."""
        columns = _columns(table)
        keys = np.array([_key(entity) for entity, *_ in data], np.int64)
        times = np.array([_to_ms(at) for _, _, at, _ in data], np.int64)
        rows = np.full((len(data), len(columns)), np.nan, np.float32)
        for i, (_, values, _, _) in enumerate(data):
            for j, name in enumerate(columns):
                value = values.get(name)
                if value is not None and value.WhichOneof("val") == "float_val":
                    rows[i, j] = value.float_val
        self._tables(config).write(table_name(config.project, table.name, columns), keys, times, rows)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """In the order of the keys: event time and values, or (None, None) for an unknown entity."""
        columns = _columns(table)
        wanted = [i for i, name in enumerate(columns) if not requested_features or name in requested_features]
        keys = [_key(entity) for entity in entity_keys]
        found = self._tables(config).read(table_name(config.project, table.name, columns), keys)
        result: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for key in keys:
            if key not in found:
                result.append((None, None))
                continue
            event_ms, row = found[key]
            numbers = row.tolist()
            values = {columns[i]: Value(float_val=numbers[i]) for i in wanted}
            result.append((_EPOCH + event_ms * _MS, values))
        return result

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Makes the tables of the views, and drops those of deleted views and of former columns."""
        tables = self._tables(config)
        for view in tables_to_keep:
            name = table_name(config.project, view.name, _columns(view))
            tables.make(name)
            tables.drop_view(config.project, view.name, keep=name)
        for view in tables_to_delete:
            tables.drop_view(config.project, view.name)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Drops the tables of these views; the file stays, since other projects may be in it."""
        for view in tables:
            self._tables(config).drop_view(config.project, view.name)

    def _tables(self, config: RepoConfig) -> PackedTables:
        path = Path(config.online_store.path)
        if not path.is_absolute():
            path = Path(config.repo_path or ".") / path
        return self._files.setdefault(path, PackedTables(path))


def _columns(view: FeatureView) -> list[str]:
    """The features of a view in the order of their packed row. Raises UserError for what cannot be packed."""
    keys = view.entity_columns
    if len(keys) != 1 or keys[0].dtype != Int64:
        raise UserError(
            f"the packed online store cannot hold the view {view.name}: its key is not one INT64",
            "give it one entity with an INT64 join key, or use another online store",
        )
    for feature in view.features:
        if feature.dtype != Float32:
            raise UserError(
                f"the packed online store cannot hold {view.name}:{feature.name}, which is {feature.dtype}",
                "make it Float32, or use another online store",
            )
    return [feature.name for feature in view.features]


def _key(entity: EntityKey) -> int:
    return int(entity.entity_values[0].int64_val)


def _to_ms(at: datetime) -> int:
    # Feast: a time without a zone is UTC.
    aware = at if at.tzinfo else at.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MS

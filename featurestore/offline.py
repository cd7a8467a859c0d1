"""Feast's way to the past: an offline store on the archive that `feature_store.yaml` names by class path.

    offline_store:
      type: featurestore.offline.ArchiveOfflineStore
      archive: chdb://../archive

Feast loads the class beside it with the same name and the ending "Config". `history` finds the rows; only Feast
imports this module, since importing Feast takes seconds.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView, RepoConfig, ValueType
from feast.data_source import DataSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_requested_feature_views_to_features_dict, _get_requested_on_demand_feature_views
from numpy.typing import NDArray

from featurestore.asked import Times, frame_of, keys_of, times_of
from featurestore.history import BEGINNING_MS, Int64s, PastView, rows_at, rows_between
from infra.clickhouse import Archive, open_archive
from infra.errors import UserError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_END_MS = 2**62  # after every event


class ArchiveOfflineStoreConfig(FeastConfigBaseModel):
    """Settings of the store; the folder of a relative chdb:// address starts at that of feature_store.yaml."""

    type: Literal["featurestore.offline.ArchiveOfflineStore"] = "featurestore.offline.ArchiveOfflineStore"
    archive: str = "chdb://../archive"


class ArchiveSource(DataSource):
    """The past rows of one view in the archive. What they are stands in the tags, which Feast keeps and shows."""

    @classmethod
    def of(cls, name: str, past: PastView) -> "ArchiveSource":
        """The source of these rows under a name of its own."""
        tags = {"task": past.task, "entity": past.entity, "view_hash": past.view_hash}
        tags["columns"] = json.dumps(past.columns)
        return cls(name=name, timestamp_field="event_timestamp", tags=tags)

    @property
    def past(self) -> PastView:
        """Which rows of the archive these are."""
        tags = self.tags
        return PastView(tags["task"], tags["entity"], tags["view_hash"], tuple(json.loads(tags["columns"])))

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> "ArchiveSource":
        """See DataSource."""
        return ArchiveSource(
            name=data_source.name,
            timestamp_field=data_source.timestamp_field,
            tags=dict(data_source.tags),
            description=data_source.description,
            owner=data_source.owner,
        )

    def _to_proto_impl(self) -> DataSourceProto:
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{__name__}.{type(self).__name__}",
            timestamp_field=self.timestamp_field,
            tags=self.tags,
            description=self.description,
            owner=self.owner,
        )

    def validate(self, config: RepoConfig) -> None:
        """Nothing to look for: the rows come with the first events."""

    def get_table_column_names_and_types(self, config: RepoConfig) -> list[tuple[str, str]]:
        """Names and ClickHouse types of the columns."""
        named = [(f"{self.past.entity}_key", "Int64"), (self.timestamp_field, "DateTime")]
        return named + [(name, "Float32") for name in self.past.columns]

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        """See DataSource."""
        types = {"Int64": ValueType.INT64, "DateTime": ValueType.UNIX_TIMESTAMP, "Float32": ValueType.FLOAT}
        return types.__getitem__

    def source_type(self) -> Any:
        """See DataSource."""
        return DataSourceProto.CUSTOM_SOURCE


class ArchiveJob(RetrievalJob):
    """Reads from the archive when the result is asked for, and then gives the archive back."""

    def __init__(
        self,
        read: Callable[[], pa.Table],
        metadata: RetrievalMetadata | None = None,
        *,
        full_feature_names: bool = False,
        on_demand: Sequence[OnDemandFeatureView] = (),
    ) -> None:
        self._read, self._metadata = read, metadata
        self._full_feature_names, self._on_demand = full_feature_names, list(on_demand)

    @property
    def full_feature_names(self) -> bool:
        """See RetrievalJob."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """See RetrievalJob."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """See RetrievalJob."""
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._read()

    def _to_df_internal(self, timeout: int | None = None) -> Any:
        return self._read().to_pandas()


class ArchiveOfflineStore(OfflineStore):
    """Point-in-time reads of the rows that the archive role stored, from the embedded engine or a server.

    A null says that the entity was not known then, NaN that the feature was not.
    """

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """For each row of a DataFrame the newest feature row of its entity that is not after its time.

        A row older than the view's ttl does not count. The rows keep their order. Raises UserError for a DataFrame
        that cannot be used, and for views of another store.
        """
        frame = frame_of(entity_df)
        time_column = infer_event_timestamp_from_entity_df(
            dict(zip(entity_df.columns, entity_df.dtypes, strict=True))
        )
        on_demand = _get_requested_on_demand_feature_views(feature_refs, config.project, registry)
        wanted, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        times = times_of(frame, time_column)
        asks = [
            _ask(view, features, frame, times, full=full_feature_names) for view, features in wanted.items()
        ]
        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[name for name in frame.column_names if name != time_column],
            min_event_timestamp=entity_df[time_column].min(),
            max_event_timestamp=entity_df[time_column].max(),
        )
        return ArchiveJob(
            lambda: _joined(config, frame, asks),
            metadata,
            full_feature_names=full_feature_names,
            on_demand=on_demand,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each entity between two times, both included: what `feast materialize` copies."""
        columns = (join_key_columns, feature_name_columns, timestamp_field)
        past = _past(data_source)
        return ArchiveJob(lambda: _span(config, past, columns, start_date, end_date, newest_only=True))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows between two times, both included, in the order of time."""
        columns = (join_key_columns, feature_name_columns, timestamp_field)
        past = _past(data_source)
        return ArchiveJob(lambda: _span(config, past, columns, start_date, end_date, newest_only=False))

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Refused: the past is what was served, and only the archive role writes it. Raises UserError."""
        raise UserError(
            f"past rows of {feature_view.name} cannot be written: they are what was served to events",
            "push to the online store only (to=PushMode.ONLINE)",
        )


@dataclass(frozen=True)
class _Ask:
    """What to look up for a view: features, the names they get, and key and times of each row of the DataFrame."""

    past: PastView
    features: list[str]
    names: list[str]
    keys: Int64s
    has_key: NDArray[np.bool_]
    until_ms: Int64s
    since_ms: Int64s


def _ask(view: FeatureView, features: list[str], frame: pa.Table, times: Times, *, full: bool) -> _Ask:
    past = _past(view.batch_source)
    [key_column] = view.entity_columns
    keys, has_key = keys_of(frame, view.projection.join_key_map.get(key_column.name, key_column.name))
    prefix = f"{view.projection.name_to_use()}__" if full else ""
    names = [prefix + feature for feature in features]
    if taken := sorted(set(names) & set(frame.column_names)):
        raise UserError(
            f"the DataFrame has a column {taken[0]!r} already", "rename it, or ask for full_feature_names"
        )
    return _Ask(past, features, names, keys, has_key, times.until_ms, times.since_ms(view.ttl))


def _joined(config: RepoConfig, frame: pa.Table, asks: Sequence[_Ask]) -> pa.Table:
    with _opened(config) as archive:
        for ask in asks:
            found, values = rows_at(archive, ask.past, ask.features, ask.keys, ask.until_ms, ask.since_ms)
            for name, column in zip(ask.names, values.T, strict=True):
                array = pa.array(column, pa.float32(), mask=~(found & ask.has_key))
                frame = frame.append_column(pa.field(name, pa.float32()), array)
    return frame


def _span(
    config: RepoConfig,
    past: PastView,
    columns: tuple[list[str], list[str], str],
    start: datetime | None,
    end: datetime | None,
    *,
    newest_only: bool,
) -> pa.Table:
    [key], features, time_column = columns
    since_ms = BEGINNING_MS if start is None else -(-_us(start) // 1000)
    until_ms = _END_MS if end is None else _us(end) // 1000
    with _opened(config) as archive:
        rows = rows_between(archive, past, features, since_ms, until_ms, newest_only=newest_only)
    stamps = pa.array(rows.event_ms).cast(pa.timestamp("ms", "UTC")).cast(pa.timestamp("us", "UTC"))
    arrays = [pa.array(rows.keys), *(pa.array(column) for column in rows.values.T), stamps]
    return pa.table(arrays, [key, *features, time_column])


@contextmanager
def _opened(config: RepoConfig) -> Iterator[Archive]:
    """The archive for as long as the body runs: while the embedded one is open, no other process can use it."""
    address: str = config.offline_store.archive
    if address.startswith("chdb://"):
        folder = Path(config.repo_path or ".") / Path(address.removeprefix("chdb://")).expanduser()
        if not folder.is_dir():
            raise UserError(
                f"there is no archive in {folder.resolve()}",
                "it is made when the archive role starts; another one is named by offline_store in feature_store.yaml",
            )
        address = f"chdb://{folder.resolve()}"
    archive = open_archive(address)
    try:
        yield archive
    finally:
        archive.close()


def _past(source: DataSource | None) -> PastView:
    if not isinstance(source, ArchiveSource):
        raise UserError(
            f"the source {source.name if source else None!r} is not in Driftline's archive",
            "read views of other sources through a repository with another offline store",
        )
    return source.past


def _us(at: datetime) -> int:
    # Feast: a time without a zone is UTC.
    aware = at if at.tzinfo else at.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _US

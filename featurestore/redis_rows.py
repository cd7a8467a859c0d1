"""Feature rows in Redis, in the layout of Feast's own Redis online store.

The layout is Feast's specification (docs/specs/online_store_format.md in its repository), so that every
stock client reads these rows: one hash an entity under its serialised key and the project's name; one field
a feature under the Murmur3 hash of "view:feature"; one field "_ts:view" for the event time.

Feast's own writer is not used because it drops a row whose time equals the stored one, and two events of an
entity in one millisecond are common. It is otherwise the same: read the stored times, then write the rows
that are not older.
"""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import Timestamp  # type: ignore[attr-defined]  # protobuf's own
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from numpy.typing import NDArray
from redis.exceptions import RedisError

from featurestore.packed import newest_rows
from infra.errors import UserError

if TYPE_CHECKING:
    from redis import Redis

_AT_ONCE = 5000  # rows a round trip: bounds what redis-py holds in memory


class RedisRows:
    """Writes feature rows; the newest event time of an entity wins, and of equal times the row written last.

    One process may write an entity at a time, which Kafka's partitions give: between the reading of the
    stored time and the write there is no lock, as there is none in Feast.
    """

    def __init__(self, client: "Redis", project: str) -> None:
        self._client, self._project = client, project.encode()
        # A value's bytes are a tag and, last, the number itself: taken from one example of each.
        self._float_tag = Value(float_val=1.0).SerializeToString()[:-4]

    def write(
        self,
        view: str,
        join_key: str,
        columns: Sequence[str],
        keys: NDArray[np.int64],
        times_ms: NDArray[np.int64],
        rows: NDArray[np.float32],
    ) -> None:
        """Stores rows f32[n, F] of entities i64[n] at event times i64[n]; UserError when Redis fails."""
        at = newest_rows(keys, times_ms)
        example = serialize_entity_key(EntityKey(join_keys=[join_key], entity_values=[Value(int64_val=0)]), 3)
        names = [example[:-8] + key.tobytes() + self._project for key in keys[at].astype("<i8")]
        fields = [_mmh3(f"{view}:{column}") for column in columns]
        stamp = f"_ts:{view}".encode()
        try:
            for start in range(0, len(at), _AT_ONCE):
                some = slice(start, start + _AT_ONCE)
                self._write(stamp, fields, names[some], times_ms[at[some]].tolist(), rows[at[some]])
        except RedisError as error:
            raise UserError(
                f"cannot write features to Redis: {error}", "start it, or let DRIFTLINE_ONLINE name another"
            ) from error

    def _write(
        self,
        stamp: bytes,
        fields: Sequence[bytes],
        names: Sequence[bytes],
        times_ms: Sequence[int],
        rows: NDArray[np.float32],
    ) -> None:
        with self._client.pipeline(transaction=False) as reads:
            for name in names:
                reads.hget(name, stamp)
            stored = reads.execute()
        tag, packed = self._float_tag, np.ascontiguousarray(rows, "<f4").tobytes()
        with self._client.pipeline(transaction=False) as writes:
            for i, (name, time_ms) in enumerate(zip(names, times_ms, strict=True)):
                if stored[i] is not None and _stored_ms(stored[i]) > time_ms:
                    continue
                start = i * rows.shape[1] * 4
                values = (tag + packed[at : at + 4] for at in range(start, start + 4 * len(fields), 4))
                writes.hset(name, items=[stamp, _stamp(time_ms), *chain(*zip(fields, values, strict=True))])
            writes.execute()


def _stamp(time_ms: int) -> bytes:
    stamp = Timestamp()
    stamp.FromMilliseconds(time_ms)
    return bytes(stamp.SerializeToString())


def _stored_ms(stored: bytes) -> int:
    stamp = Timestamp()
    stamp.ParseFromString(stored)
    return int(stamp.ToMilliseconds())

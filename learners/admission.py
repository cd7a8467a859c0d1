"""The checks that an update passes before a slot takes it, in their order.

  meta       every key is there with its type
  schema     it was made for the features that this worker computes
  bytes      the payload has the SHA-256 that the meta names
  signature  where a key is set: the meta, and with it the payload's SHA-256, was signed with it
  format     the payload is readable as safetensors (never pickle)
  weights    names, types and shapes fit; everything is finite and of a size that training can reach
  golden     scores of the golden rows are those that the sender got, and tell rows apart
  latency    scoring the golden rows fits the budget

A refresh, which comes every second, passes those up to `weights`; a whole model passes all of them.
"""

import hashlib
import hmac
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from learners import weights
from learners.batch import Schema
from learners.models import EventModel, Net
from learners.rollback import GOLDEN_ROWS
from learners.views import Payload, tensors_in

Meta = dict[str, Any]
Step = Literal["meta", "schema", "bytes", "signature", "format", "weights", "golden", "latency"]

TOLERANCE = 1e-4  # of a golden score, in units of the model: other machines round a sum otherwise
LARGEST_WEIGHT = 1e4  # of a net: scaled inputs are at most 6, and a score is decided long before
_TRIES = 3  # the fastest of these counts: a machine may be busy with something else


class BadUpdate(Exception):
    """An update that must not be applied. `step` is the check that it did not pass."""

    def __init__(self, step: Step, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class Admission:
    """What a worker asks of an update beyond that it fits.

    `key` signs (none: signatures are not looked at); `budget_ms` is how long the golden rows may take;
    `clock` gives seconds.
    """

    key: bytes = b""
    budget_ms: float = math.inf
    clock: Callable[[], float] = time.perf_counter


USUAL = Admission()


@lru_cache(maxsize=4)
def golden_rows(schema: Schema) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Numbers [64, N] and ids [64, I] that everyone makes alike: they need not travel, and are nobody's data.

    Numbers spread over six decades with both signs and some unknown, categories over all rows with some missing.
    They are kept, and cannot be written to.
    """
    columns = len(schema.numbers) + schema.ids
    drawn = mixed(np.arange(1, GOLDEN_ROWS * columns + 1, dtype=np.uint64)).reshape(GOLDEN_ROWS, columns)
    left, right = np.split(drawn, [len(schema.numbers)], axis=1)
    share = (left >> np.uint64(11)).astype(np.float64) / 2.0**53
    numbers = np.where(left & np.uint64(1), 1.0, -1.0) * 10.0 ** (6.0 * share - 2.0)
    numbers[share < 0.1] = np.nan
    categories = np.where(right % np.uint64(10) == 0, 0, right.view(np.int64))
    rows = numbers.astype(np.float32), categories
    for array in rows:
        array.setflags(write=False)
    return rows


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea & Flood 2014): the same numbers on every machine and with every version of numpy."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def golden_scores(model: EventModel, schema: Schema, tensors: dict[str, Tensor]) -> list[float]:
    """Scores of the golden rows, as they travel in the meta of a whole model of these tensors.

    None of a model that no slot will take: a tree with NaN in it could not even be walked.
    """
    if weights.problem(model, tensors):
        return []
    scores: list[float] = model.predict(*golden_rows(schema)).ravel().tolist()
    return scores if schema.target.is_value else [round(score, 6) for score in scores]


def signature(meta: Meta, key: bytes) -> str:
    """HMAC-SHA256 of the meta (without a signature) in hexadecimal digits."""
    text = json.dumps({name: meta[name] for name in meta if name != "signature"}, sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def check_payload(meta: Meta, payload: Payload, schema: Schema, key: bytes) -> dict[str, Tensor]:
    """The payload's tensors after the checks schema, bytes, signature and format; raises BadUpdate.

    They share the payload's memory where that can be written to.
    """
    version = meta["version"]
    if meta["schema"] != schema.hash:
        raise BadUpdate("schema", f"{version} was made for other features than this worker computes")
    if hashlib.sha256(payload).hexdigest() != meta["sha256"]:
        raise BadUpdate("bytes", f"{version} is damaged: its {len(payload)} bytes have another SHA-256")
    if key and not hmac.compare_digest(str(meta.get("signature", "")), signature(meta, key)):
        signed = "signed with another key" if "signature" in meta else "not signed"
        raise BadUpdate("signature", f"{version} is {signed}")
    try:
        return tensors_in(payload)
    except ValueError as error:
        raise BadUpdate("format", f"{version} is not readable as safetensors: {error}") from error


def check_weights(meta: Meta, model: EventModel, tensors: dict[str, Tensor]) -> None:
    """Raises BadUpdate unless `tensors` can be written into `model`."""
    reason = weights.problem(model, tensors, LARGEST_WEIGHT if isinstance(model, Net) else math.inf)
    if reason is not None:
        raise BadUpdate("weights", f"{meta['version']}: {reason}")


def check_scores(
    meta: Meta, model: EventModel, schema: Schema, replaced: EventModel, admission: Admission
) -> None:
    """The checks golden and latency of a whole model whose weights are written; `replaced` serves so far.

    This also warms the model up. It is timed again only if the first time does not fit the budget. Raises BadUpdate.
    """
    version, rows, start = meta["version"], golden_rows(schema), admission.clock()
    scores = model.predict(*rows)
    took_ms = (admission.clock() - start) * 1000.0
    apart_rows = float(np.ptp(scores, axis=0).max())
    scores = scores.ravel()
    wanted = np.array(meta["golden"], np.float64)
    if wanted.shape != scores.shape or not np.isfinite(scores).all():
        raise BadUpdate("golden", f"{version} does not give {GOLDEN_ROWS} finite scores for the golden rows")
    apart = float(np.abs(scores - wanted).max()) / float(model.unit)
    if not apart <= TOLERANCE:
        raise BadUpdate("golden", f"{version} scores the golden rows otherwise here: {apart:.2g} apart")
    learned = float(model.seen.sum()) > 0.0  # a new model has nothing yet to tell rows apart by
    if learned and apart_rows == 0.0 and np.ptp(replaced.predict(*rows), axis=0).max() > 0.0:
        raise BadUpdate("golden", f"{version} gives every row the same score, {scores[0]:.4f}")
    if took_ms > admission.budget_ms:
        [took_ms] = scoring_ms(schema, admission.clock, model)
    if took_ms > admission.budget_ms:
        budget = f"the budget is {admission.budget_ms:g} ms"
        raise BadUpdate("latency", f"{version} needs {took_ms:.1f} ms for {GOLDEN_ROWS} rows, {budget}")


def scoring_ms(schema: Schema, clock: Callable[[], float], *models: EventModel) -> list[float]:
    """Milliseconds that each model takes for the golden rows: the best of some times, in turns. `clock`: seconds."""
    rows = golden_rows(schema)
    best = [math.inf] * len(models)
    for _ in range(_TRIES):
        best = [
            min(known, _timed(partial(model.predict, *rows), clock) * 1000.0)
            for known, model in zip(best, models, strict=True)
        ]
    return best


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


_TEXTS = ("kind", "lineage", "version", "follows", "chain", "schema", "sha256")
_COUNTS = ("refresh", "previous", "event_ms", "created_ms")


def check_meta(meta: Meta) -> None:
    """Raises BadUpdate unless every key that an update needs is there with its type."""
    wrong = [name for name in _TEXTS if not isinstance(meta.get(name), str)]
    wrong += [name for name in _COUNTS if type(meta.get(name)) is not int]
    if meta.get("kind") == "swap":
        wrong += [] if _is_numbers(meta.get("golden")) else ["golden"]
    if "canary" in meta and not (type(meta["canary"]) is float and 0.0 < meta["canary"] < 1.0):
        wrong += ["canary"]
    if wrong:
        shown = json.dumps(meta, default=str)[:200]
        raise BadUpdate("meta", f"the update's meta lacks {', '.join(wrong)}: {shown}")
    if meta["kind"] not in ("refresh", "swap") or meta["version"] != f"{meta['lineage']}.{meta['refresh']}":
        raise BadUpdate("meta", f"the update names kind {meta['kind']!r} and version {meta['version']!r}")


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(each) in (int, float) for each in value)

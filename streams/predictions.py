"""The records of the predictions topic: what a score is called depends on what the task predicts."""

from collections.abc import Mapping
from typing import Any

import msgspec

from learners.target import Target


class Source(msgspec.Struct, gc=False):
    """Where an event stands in the events topic."""

    partition: int
    offset: int


class Prediction(msgspec.Struct, gc=False):
    """One record of the predictions topic; docs/schemas.md has the units."""

    event_id: str
    task: str
    score: float
    version: str
    event_time: int
    received_at: int
    processed_at: int
    late: bool
    source: Source


class ValuePrediction(msgspec.Struct, gc=False):
    """The same of a regression task: a value in the label's unit in place of a score."""

    event_id: str
    task: str
    value: float
    version: str
    event_time: int
    received_at: int
    processed_at: int
    late: bool
    source: Source


def record_of(target: Target) -> type[Prediction] | type[ValuePrediction]:
    """The record for what a task predicts."""
    return ValuePrediction if target.is_value else Prediction


def score_of(record: Mapping[str, Any]) -> float:
    """The score, or the value, of a record that was read. KeyError if it has neither."""
    return float(record["value"] if "value" in record else record["score"])

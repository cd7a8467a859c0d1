"""The records of the predictions topic: what a score is called depends on what the task predicts."""

from collections.abc import Callable, Mapping, Sequence
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
    arm: str
    explored: bool
    propensity: float
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
    arm: str
    explored: bool
    propensity: float
    source: Source


class ClassPrediction(msgspec.Struct, rename={"winner": "class"}, gc=False):
    """The same of a multi-class task: the winning class, its probability as the score, and those of all classes.

    `propensities` has the classes that may be acted on, with the probability of each.
    """

    event_id: str
    task: str
    winner: str
    score: float
    scores: dict[str, float]
    version: str
    event_time: int
    received_at: int
    processed_at: int
    late: bool
    arm: str
    explored: bool
    propensity: float
    source: Source
    propensities: dict[str, float]


def recorder(
    target: Target, labelled: Sequence[str] = ()
) -> Callable[..., Prediction | ValuePrediction | ClassPrediction]:
    """What makes a record of event_id, task, score (of several classes a list), and the rest of `Prediction`.

    `labelled` are the classes that exploration acts on (`streams.exploration`).
    """
    if not target.classes:
        return ValuePrediction if target.is_value else Prediction

    def of_classes(event_id: str, task: str, scores: list[float], *rest: Any) -> ClassPrediction:
        best = max(range(len(scores)), key=scores.__getitem__)
        named = dict(zip(target.classes, scores, strict=True))
        winner, propensity = target.classes[best], rest[-2]
        chances = {winner: 1.0}
        if propensity < 1.0:  # if it is explored, it is acted on as the likeliest class whose label is seen
            chances = {winner: round(1.0 - propensity, 6), max(labelled, key=named.__getitem__): propensity}
        return ClassPrediction(event_id, task, winner, scores[best], named, *(*rest, chances))

    return of_classes


def score_of(record: Mapping[str, Any]) -> float:
    """The score, or the value, of a record that was read. KeyError if it has neither."""
    return float(record["value"] if "value" in record else record["score"])

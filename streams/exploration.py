"""Exploration: a few events are marked so that their label is seen whatever the score says.

Where a decision by the score decides whether there will be a label (a loan that is refused is never paid back, a
transaction that is blocked is never found to be a fraud), a model learns only about what it lets pass, and what it
is wrong about it never finds out. So a share of the events is explored: whoever decides lets these pass whatever
their score. Which ones follows from a hash of the event id, so a replay marks the same.

With the decision rule known (`labels`, `threshold`; of several classes `classes`, of which one must win), so is the
probability that the label of an event with this score is seen, its propensity: 1 on the side that has labels, the share
of explored events on the other. Examples weighted by its inverse are, in expectation, all events (Horvitz and Thompson
1952; Bottou et al. 2013, "Counterfactual reasoning and learning systems"). The weight is clipped: a few heavy rows make
a step noisy, at the price of some bias (Swaminathan and Joachims 2015, "Counterfactual risk minimization").
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDES = ("above", "below")
_SALT = "explored"


@dataclass(frozen=True)
class Exploration:
    """The `[exploration]` section of a task file. Raises ValueError, naming the field, for a value that cannot work."""

    share: float = 0.0  # of the events; 0: none is explored, and nothing is known of decisions
    labels: str = "above"  # or "below": on which side of the threshold events have labels
    threshold: float = 0.5  # of the score
    classes: tuple[str, ...] = ()  # of a multi-class task: those whose events have labels where they win
    max_weight: float = 20.0  # of an example; 1: none counts for more than any other

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 0.5:
            raise ValueError("share must be at least 0 and at most 0.5")
        if self.max_weight < 1.0:
            raise ValueError("max_weight must be at least 1")


NONE = Exploration()


@dataclass(frozen=True)
class Marks:
    """Of scored events: `explored` bool [n], `propensity` float32 [n], `weight` float32 [n]."""

    explored: NDArray[np.bool_]
    propensity: NDArray[np.float32]
    weight: NDArray[np.float32]

    @property
    def hidden(self) -> NDArray[np.bool_]:
        """Whose label a decision hides: bool [n]."""
        return (self.propensity < 1.0) & ~self.explored


def marks(
    config: Exploration, ids: Sequence[str], scores: NDArray[Any], classes: Sequence[str] = ()
) -> Marks:
    """The marks of events with these ids [n] and scores [n], or [n, K] of the K `classes`."""
    n = len(ids)
    if not config.share:
        return Marks(np.zeros(n, np.bool_), np.ones(n, np.float32), np.ones(n, np.float32))
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8, key=_SALT.encode()).digest() for i in ids)
    drawn = (np.frombuffer(digests, "<u8") >> np.uint64(11)).astype(np.float64) / 2.0**53
    if classes:
        seen = np.array([name in config.classes for name in classes])[scores.argmax(axis=1)]
    else:
        seen = scores >= config.threshold if config.labels == "above" else scores < config.threshold
    propensity = np.where(seen, 1.0, config.share).astype(np.float32)
    weight = np.minimum(1.0 / propensity, np.float32(config.max_weight)).astype(np.float32)
    return Marks(drawn < config.share, propensity, weight)


Fault = tuple[str, str, str]


def fault(config: Exploration, given: Mapping[str, Any], kind: str, classes: Sequence[str]) -> Fault | None:
    """Key, what is wrong and the fix of a section whose values are possible, but together mean nothing.

    `given` are the keys that the section has, `classes` those of a multi-class task.
    """
    extra = next((key for key in given if key != "share"), None)
    if not config.share:
        fix = "add share = 0.02, or remove this line"
        return (extra, f"exploration.{extra} has no effect without share", fix) if extra else None
    if kind == "multiclass":
        return _fault_of_classes(config, given, classes)
    if config.classes:
        said = f"exploration.classes has no meaning in a {kind} task: its score decides"
        return "classes", said, "remove it, and set labels and threshold"
    if config.labels not in SIDES:
        return "labels", f'exploration.labels is "{config.labels}"', 'use "above" or "below"'
    if kind == "binary" and not 0.0 < config.threshold < 1.0:
        said = f"exploration.threshold is {config.threshold:g}, and a score is a probability"
        return "threshold", said, "use a number between 0 and 1"
    if kind == "regression" and "threshold" not in given:
        fix = "add the value by which is decided, in the label's unit, such as threshold = 100.0"
        return "share", "exploration.threshold is missing: the scores of a regression task are values", fix
    return None


def _fault_of_classes(config: Exploration, given: Mapping[str, Any], classes: Sequence[str]) -> Fault | None:
    if alien := next((key for key in ("labels", "threshold") if key in given), None):
        said = f"exploration.{alien} has no meaning in a multiclass task: the class that wins decides"
        return alien, said, "remove it, and name the classes that get a label: classes = [...]"
    if not config.classes:
        fix = f'name the classes whose events get a label where they win, such as classes = ["{classes[0]}"]'
        return "share", "exploration.classes is missing: it is not known which decisions hide a label", fix
    if unknown := next((name for name in config.classes if name not in classes), None):
        return "classes", f'exploration.classes has "{unknown}"', f"use some of {', '.join(classes)}"
    if set(config.classes) == set(classes):
        return "classes", "exploration.classes has all classes: no label is hidden", "remove [exploration]"
    return None

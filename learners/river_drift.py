"""River's drift detectors by name, so that they can be saved without pickle and fed with blocks of losses."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.ranks import Change

MOST_VALUES = 4_096  # a detector that was fed so many values since it was new ...
KEPT_VALUES = 2_048  # ... starts afresh from the newest of them
MISTAKE = (
    math.log(2.0) / 6.0
)  # a scaled loss above is a mistake: the label had less than half of the probability
MIN_BLOCKS = 5  # ADWIN's shortest window
BLOCKWISE = {"adwin"}  # gets one value for a block; the others one for each example
ON_ERRORS = {"ddm", "eddm"}  # want right or wrong, not a loss


class _Fires(Protocol):
    """What all of River's detectors are."""

    @property
    def drift_detected(self) -> bool:
        """Whether the last value made it fire."""

    def update(self, x: float) -> Any:
        """One more value."""


class RiverDetector:
    """One of River's detectors: "adwin", "page_hinkley", "ddm", "eddm" or "kswin", with River's settings.

    Only ADWIN takes `delta`. It gets block sums: for these its inequality is that for single values times the size of
    a block (only its log log n differs), so nothing is lost but a resolution of one block, and River by default looks
    only every 32 values anyway. The others get each example, DDM and EDDM whether it was scored on the wrong side.

    River's objects cannot be saved without pickle, so this keeps what it fed and feeds it again; to bound that, it
    starts afresh from the newest `KEPT_VALUES` whenever it has fed `MOST_VALUES`.
    """

    def __init__(self, name: str, delta: float) -> None:
        self._name, self._delta = name, delta
        self._fed: list[float] = []
        self._river = self._new()

    def update(self, block: NDArray[np.float64]) -> Change | None:
        """The next block of scaled losses [n]; a change that one does not know more of if River fired in it."""
        if len(self._fed) >= MOST_VALUES:
            self._refeed(self._fed[-KEPT_VALUES:])
        if self._name in BLOCKWISE:
            values = [float(block.sum())]
        elif self._name in ON_ERRORS:
            values = (block > MISTAKE).astype(np.float64).tolist()
        else:
            values = block.tolist()
        return Change() if self._feed(values) else None

    def restart(self, sums: Sequence[float]) -> None:
        """Only blocks with these sums have been. A detector of single examples knows nothing of them."""
        self._refeed(sums[-KEPT_VALUES:] if self._name in BLOCKWISE else [])

    def _feed(self, values: Sequence[float]) -> bool:
        fired = False
        for value in values:
            self._fed.append(value)
            self._river.update(value)
            if self._river.drift_detected:  # River would forget everything at the next value; do so now
                fired, self._fed, self._river = True, [], self._new()
        return fired

    def _refeed(self, values: Sequence[float]) -> None:
        self._fed, self._river = [], self._new()
        self._feed(values)

    def _new(self) -> _Fires:
        from river import drift  # takes seconds to import; roles that only read settings do not pay
        from river.drift import binary

        made: _Fires
        match self._name:
            case "adwin":
                made = drift.ADWIN(
                    delta=self._delta, clock=1, min_window_length=MIN_BLOCKS, grace_period=2 * MIN_BLOCKS
                )
            case "page_hinkley":
                made = drift.PageHinkley(mode="up")
            case "kswin":
                made = drift.KSWIN(seed=0)
            case "ddm":
                made = binary.DDM()
            case "eddm":
                made = binary.EDDM()
            case _:
                raise KeyError(self._name)
        return made

    def state(self) -> dict[str, NDArray[Any]]:
        """What was fed since it was new; `load` is the inverse."""
        return {"fed": np.array(self._fed, np.float64)}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`."""
        self._refeed(state["fed"].tolist())

"""Regret on a simulated stream, whose true probabilities are known: what scores lose to them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.clickhouse import Archive
from learners.prequential import log_loss
from streams.simulate import Simulation


def excess_log_loss(
    label: NDArray[Any], score: NDArray[np.floating[Any]], truth: NDArray[np.float64]
) -> float | None:
    """Mean log loss of scores [n] above that of the true probabilities [n] on the same labels [n], in nats.

    None without labels. 0 is what nobody can do better than, but for luck.
    """
    if not len(label):
        return None
    return float((log_loss(label, score) - log_loss(label, truth)).mean())


def served_excess(archive: Archive, task: str, simulation: Simulation) -> float | None:
    """The same for all of a simulation that was served and has a label, by the archive's table `labels`."""
    rows = archive.query(
        "SELECT event_id, label, served FROM labels FINAL"
        f" WHERE task = '{task}' AND startsWith(event_id, '{simulation.stream.id_prefix}-')"
    )
    number = np.array([int(event_id.rsplit("-", 1)[1]) for event_id, _, _ in rows], np.int64)
    label, served = (np.array([row[at] for row in rows], np.float64) for at in (1, 2))
    return excess_log_loss(label, served, simulation.truth()[number])

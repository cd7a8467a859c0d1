"""What an alert rests on, in a file of the blob store: histograms before and after, evidence, thresholds.

It is too much for a record of a topic. The alert names the file, and `driftline drift show` prints it.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from infra.blobs import BlobMissing, Blobs
from learners.drift import Alert

log = logging.getLogger(__name__)
KEPT = 1_000  # files of a task, some tens of kB each


def keep_evidence(store: Blobs, task: str, alert: Alert) -> str:
    """Store what the alert rests on; the name of the file, "" where there is nothing to store or no room for it.

    An alert out of the training ledger has nothing with it, and its file is there already. Names begin with the event
    time, and the oldest of more than `KEPT` go.
    """
    name = f"alerts/{task}/{alert.event_ms:015d}.{alert.alert_id}.{alert.level}.json"
    if not alert.details:
        return name if evidence_of(store, name) is not None else ""
    try:
        store.put(name, json.dumps(dict(alert.details)).encode())
        for old in sorted(set(store.list(f"alerts/{task}/")) - {name})[: -KEPT + 1]:
            store.delete(old)
    except OSError as error:
        log.error("cannot store the evidence of %s: %s; free some space in %s", name, error, store.url)
        return ""
    return name


def evidence_of(store: Blobs, name: str) -> Mapping[str, Any] | None:
    """What an alert's `evidence` names; None if it is not there any more."""
    try:
        found: Mapping[str, Any] = json.loads(store.get(name))
    except (BlobMissing, ValueError):
        return None
    return found

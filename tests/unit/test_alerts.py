"""Files of evidence: named in the order of the stream, and not kept for ever."""

from dataclasses import replace
from pathlib import Path

import pytest

from infra.blobs import Blobs
from learners.drift import Alert
from streams.alerts import evidence_of, keep_evidence

ALERT = Alert(
    "psi-1", "psi", "input", "amount", 0.3, 0.2, "e-1", 0, 0, "L1.1", "amount moved", details={"psi": 0.3}
)


def test_only_the_newest_evidence_is_kept_and_that_of_the_ledger_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.alerts.KEPT", 3)
    store, alerts = (
        Blobs(tmp_path.as_uri()),
        [replace(ALERT, alert_id=f"psi-{i}", event_ms=i) for i in range(6)],
    )
    assert keep_evidence(store, "other", ALERT)
    names = [keep_evidence(store, "t", alerts[i]) for i in (0, 2, 3, 4, 5)]
    assert [evidence_of(store, name) is not None for name in names] == [False, False, True, True, True]
    assert keep_evidence(store, "t", replace(alerts[5], details={})) == names[-1]
    assert keep_evidence(store, "t", replace(alerts[0], details={})) == ""  # it is gone
    late = keep_evidence(store, "t", alerts[1])  # of an older part of the stream, and still the newest alert
    assert evidence_of(store, late) == {"psi": 0.3}
    assert len(store.list("alerts/t/")) == 3
    assert len(store.list("alerts/other/")) == 1

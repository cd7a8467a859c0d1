"""Prometheus metrics: a real scrape, read by Prometheus's own parser, and the page of the documentation."""

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import get_args, get_type_hints
from urllib.request import urlopen

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from infra.exporter import export, exported_name
from infra.metrics import BUCKETS, NAMES, Metrics
from infra.ports import HOST, free_port
from learners.admission import Step
from learners.challenger import Action
from learners.drift import Alert

ROOT = Path(__file__).parents[2]
OURS = {"task": "clicks", "role": "serve", "worker": "serve-1"}


@contextmanager
def exported(metrics: Metrics) -> Iterator[str]:
    port = free_port()
    server = export(metrics, HOST, port, OURS)
    try:
        yield f"http://{HOST}:{port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def scrape(url: str) -> dict[str, Metric]:
    with urlopen(url, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_a_scrape_has_everything_in_seconds_and_with_labels() -> None:
    metrics = Metrics()
    metrics.count("predictions_total", 3)
    metrics.count("dead_letters_total", 2, of=(odd := 'a "reason"\n'))
    metrics.note("online_staleness_ms", 1_250)
    metrics.observe("prediction_latency_ms", [4, 30, 31, 99_000])
    ages = iter([500.0, 1_500.0])
    metrics.probe("model_age_ms", lambda: next(ages))
    with exported(metrics) as url:
        found, again = scrape(url), scrape(url)
    predictions = found["driftline_predictions"]
    assert (predictions.type, predictions.documentation) == ("counter", NAMES["predictions_total"].help)
    assert [(s.name, s.labels, s.value) for s in predictions.samples] == [
        ("driftline_predictions_total", OURS, 3)
    ]
    letters = {s.labels["reason"]: s for s in found["driftline_dead_letters"].samples}
    assert letters[odd].labels == OURS | {"reason": odd}
    assert (letters[odd].value, letters["malformed"].value) == (2, 0)
    assert found["driftline_online_staleness_seconds"].samples[0].value == 1.25
    assert found["driftline_model_age_seconds"].samples[0].value == 0.5
    assert again["driftline_model_age_seconds"].samples[0].value == 1.5
    latency = found["driftline_prediction_latency_seconds"]
    values = {s.labels.get("le", s.name.rpartition("_")[2]): s.value for s in latency.samples}
    assert latency.type == "histogram"
    assert (values["0.005"], values["0.02"], values["0.05"], values["60"], values["+Inf"]) == (1, 1, 3, 3, 4)
    assert (values["count"], values["sum"]) == (4, 99.065)
    memory = found["process_resident_memory_bytes"].samples[0]
    assert memory.labels == OURS
    assert memory.value > 1e6


def test_what_never_happened_is_zero_in_the_role_that_could_count_it() -> None:
    with exported(Metrics()) as url:
        found = {name: family.samples[0].value for name, family in scrape(url).items() if "driftline" in name}
    assert found["driftline_snapshots_failed"] == 0
    assert set(found) == {
        exported_name(name).removesuffix("_total")
        for name, known in NAMES.items()
        if name.endswith("_total") and "serve" in known.roles
    }


def test_labels_have_the_values_that_the_code_gives_them() -> None:
    assert NAMES["decisions_total"].of == get_args(Action)
    assert NAMES["alerts_total"].of == get_args(get_type_hints(Alert)["level"])
    assert NAMES["rejected_updates_total"].of == get_args(Step)
    page = (ROOT / "docs" / "schemas.md").read_text()
    reasons = page.partition("| reason | meaning |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", reasons, re.MULTILINE)) == sorted(
        NAMES["dead_letters_total"].of
    )


def test_a_port_that_is_taken_is_told_in_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    with closing(socket.create_server((HOST, 0))) as other:
        port = other.getsockname()[1]
        with caplog.at_level(logging.INFO):
            assert export(Metrics(), HOST, port, OURS) is None
    (record,) = caplog.records
    assert f"http://{HOST}:{port}/metrics" in record.getMessage()
    assert "DRIFTLINE_METRICS" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None


def kind(name: str) -> str:
    return "counter" if name.endswith("_total") else "histogram" if name in BUCKETS else "gauge"


def test_the_page_lists_every_metric() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = [
        tuple(cell.strip(" `") for cell in line.strip("|").split("|"))
        for line in re.findall(r"^\| `driftline_.*\|$", page, re.MULTILINE)
    ]
    order = ("serve", "join", "learn", "archive")
    expected = [
        (
            exported_name(name),
            kind(name),
            ", ".join(r for r in order if r in known.roles),
            known.label,
            known.help,
        )
        for name, known in NAMES.items()
    ]
    assert sorted(listed) == sorted(expected)
    asked = {re.sub("_bucket$", "", name) for name in re.findall(r"driftline_\w+", page)}
    assert asked == {name for name, *_ in expected}

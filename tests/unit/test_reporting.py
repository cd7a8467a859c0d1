"""Where the metrics of each process of `driftline up` are, and what it says of them."""

import json
import socket
from contextlib import closing
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.metrics import Metrics
from infra.ports import HOST, can_listen, free_port
from infra.settings import Settings
from streams.reporting import TARGETS, addresses, line, targets

NAMES = ("archive", "join")


def settings(folder: Path, metrics: str) -> Settings:
    return Settings(kafka="", data=folder, metrics=metrics)


def two_free_ports() -> int:
    while not can_listen(HOST, (first := free_port()) + 1):
        continue
    return first


def test_the_line_of_the_log_has_everything() -> None:
    metrics = Metrics()
    metrics.count("dead_letters_total", 2, of="null")
    metrics.observe("update_latency_ms", [10, 20])
    assert line(metrics) == "dead_letters_total{null} 2, update_latency_ms 15 on average"


def test_each_process_has_the_next_port_and_prometheus_finds_all_of_them(tmp_path: Path) -> None:
    assert addresses(settings(tmp_path, ""), NAMES) == {}
    first = two_free_ports()
    found = addresses(settings(tmp_path, f"0.0.0.0:{first}"), NAMES)
    assert found == {"archive": f"0.0.0.0:{first}", "join": f"0.0.0.0:{first + 1}"}
    with targets(tmp_path, found) as said:
        noted = json.loads((tmp_path / TARGETS).read_text())
        assert noted == [{"targets": [f"{HOST}:{first}"]}, {"targets": [f"{HOST}:{first + 1}"]}]
        assert f"archive http://{HOST}:{first}/metrics, join http://{HOST}:{first + 1}/metrics" in said
        assert str(tmp_path / TARGETS) in said
    assert list(tmp_path.iterdir()) == []


def test_an_address_of_the_sixth_version_keeps_its_brackets(tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    first = free_port()
    assert addresses(settings(tmp_path, f"[::1]:{first}"), ["join"]) == {"join": f"[::1]:{first}"}
    assert settings(tmp_path, f"[::1]:{first}").metrics_at == ("::1", first)


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    first = two_free_ports()
    with (
        closing(socket.create_server((HOST, first + 1))),
        pytest.raises(UserError, match=f"{HOST}:{first + 1}") as caught,
    ):
        addresses(settings(tmp_path, f"{HOST}:{first}"), NAMES)
    assert "2 free ports" in caught.value.fix
    with pytest.raises(UserError, match=f"{HOST}:65536"):
        addresses(settings(tmp_path, f"{HOST}:65535"), NAMES)

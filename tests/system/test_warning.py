"""A learner on a real Kafka warns of an input that moved when it is served, without a label; killed, it warns once."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from infra.kafka import make_producer, read_all
from infra.settings import Settings
from streams.prepare import prepare
from streams.topics import Topics
from streams.wire import EXAMPLES, KIND, encode_examples
from tests.learner_log import labelled
from tests.system import run_support as runs

ROWS, CHANGE, CUT = 20_000, 16_000, 500


def test_a_warning_needs_no_label_and_is_given_once(broker: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    task = runs.own_task(tmp_path, "warned")
    prepare(task, Settings(kafka=broker.address, data=data, partitions=2))
    topics, rows = Topics.of(task), labelled(task, ROWS).rows
    moved = task.numbers[0]
    rows.numbers[CHANGE:, 0] *= 100
    served = np.random.default_rng(1).beta(2, 8, ROWS).astype(np.float32)
    where = ("--task", str(task.path), "--kafka", broker.address)

    def alerts() -> list[dict[str, Any]]:
        return [json.loads(record.value or b"") for record in read_all(broker.address, topics.drift_alerts)]

    with make_producer(broker.address) as producer:

        def send(begin: int, end: int) -> None:
            for start in range(begin, end, CUT):
                cut = np.arange(start, start + CUT)
                value = encode_examples(rows.take(cut), served[cut], "L1.3")
                kind = [(KIND, EXAMPLES)]
                producer.send(topics.examples, value, partition=start // CUT % 2, headers=kind)
                producer.flush()  # so that the times of the records are in order

        with runs.running(data, "learn", *where, DRIFTLINE_PARTITIONS="2") as first:
            send(0, CHANGE + 2 * CUT)
            runs.until(lambda: len(alerts()) > 0, "a warning")
            first.process.kill()
        with runs.running(data, "learn", *where, DRIFTLINE_PARTITIONS="2") as second:
            runs.until(lambda: "ready with" in second.output, "the learner's second life")
            send(CHANGE + 2 * CUT, ROWS)
            assert second.stop() == 0
            assert "Traceback" not in second.output

    told = alerts()
    assert len({alert["alert_id"] for alert in told}) == 1
    assert (told[0]["level"], told[0]["features"][0]["name"]) == ("input", moved)
    assert abs(int(told[0]["since_event_id"].removeprefix("e-")) - CHANGE) <= 20
    shown = runs.driftline(data, "drift", "show", told[0]["alert_id"], *where)
    assert f"{moved} is about 100 times larger" in shown.stdout, shown.stderr
    (row,) = map(
        json.loads,
        runs.driftline(data, "drift", "show", told[0]["alert_id"], *where, "--json").stdout.splitlines()[:1],
    )
    assert row["evidence"]["columns"][moved]["kolmogorov_smirnov"] > 0.1

"""A quixstreams program that scores clicks: what a user writes who follows its own documentation.

    python quix_dataframe.py PLAN.json        (in the environment that benchmarks/serve.py makes)

Two stateful windows and one value a key in RocksDB, each with its changelog topic; exactly once; one prediction an
event. A window's result replaces the event, so the event rides along as the window's last value.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from quixstreams import Application, State  # type: ignore[import-not-found]
from quixstreams.dataframe.windows import Count, Last  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.scoring import Scorer, event_seconds


def build(plan: dict[str, Any]) -> Any:
    """The application: one dataframe over the events topic."""
    app = Application(
        broker_address=plan["kafka"],
        consumer_group=plan["group"],
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=plan["state"],
        loglevel="WARNING",
    )

    def event_ms(value: Any, *_: Any) -> int:
        return int(event_seconds(value) * 1000)

    events = app.topic(plan["events"], value_deserializer="json", timestamp_extractor=event_ms)
    predictions = app.topic(plan["predictions"], key_serializer="str", value_serializer="json")
    scorer = Scorer(plan)

    def score(row: dict[str, Any], state: State) -> dict[str, Any]:
        now, before = event_seconds(row), state.get("last-seen")
        state.set("last-seen", now)
        since = now - before if before else float("nan")
        # These windows count the event itself; ours are read before it is added.
        return scorer.predict(row, row["in_hour"] - 1, row["in_day"] - 1, since)

    frame = app.dataframe(events)
    frame = frame.tumbling_window(timedelta(hours=1), name="hour").agg(n=Count(), event=Last()).current()
    frame = frame.apply(lambda window: {**window["event"], "in_hour": window["n"]})
    frame = frame.tumbling_window(timedelta(days=1), name="day").agg(n=Count(), event=Last()).current()
    frame = frame.apply(lambda window: {**window["event"], "in_day": window["n"]})
    frame = frame.apply(score, stateful=True)
    frame.to_topic(predictions, key=lambda row: row["event_id"])
    return app


def main() -> None:
    """Run until it is ended."""
    build(json.loads(Path(sys.argv[1]).read_text())).run()


if __name__ == "__main__":
    main()

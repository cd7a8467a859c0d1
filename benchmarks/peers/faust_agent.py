"""A stock Faust program that scores clicks: what a user writes who follows Faust's own documentation.

    python faust_agent.py PLAN.json

Two windowed tables and a plain one in memory, each with its changelog topic; one prediction an event.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import faust
from faust.worker import Worker

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.scoring import DAY_S, HOUR_S, Scorer, event_seconds


def build(plan: dict[str, Any]) -> faust.App:
    """The app: one agent over the events topic."""
    app = faust.App(
        plan["group"],
        broker=f"kafka://{plan['kafka']}",
        store="memory://",
        datadir=plan["state"],
        topic_partitions=plan["partitions"],
        web_enabled=False,
        producer_linger=0.02,  # stock sends every record by itself, and is slower for it
    )
    events = app.topic(plan["events"], key_serializer="raw", value_serializer="json")
    predictions = app.topic(plan["predictions"], key_serializer="raw", value_serializer="json")

    def by_event_time(event: Any) -> float:
        return event_seconds(event.value)

    def window(name: str, size_s: int) -> Any:
        # Faust's types lack relative_to. Two windows are kept, so that an event at the edge still finds its own.
        tumbling: Any = app.Table(name, default=int).tumbling(size_s, expires=2 * size_s)
        return tumbling.relative_to(by_event_time)

    hour, day = window("hour", HOUR_S), window("day", DAY_S)
    last_seen = app.Table("last-seen", default=float)
    scorer = Scorer(plan)

    @app.agent(events)
    async def score(stream: Any) -> None:
        async for event in stream:
            user, now = event["user_id"], event_seconds(event)
            in_hour, in_day, before = hour[user].value(), day[user].value(), last_seen[user]
            hour[user] += 1
            day[user] += 1
            last_seen[user] = now
            since = now - before if before else float("nan")
            row = scorer.predict(event, in_hour, in_day, since)
            await predictions.send(key=row["event_id"].encode(), value=row)

    return app


def main() -> None:
    """Run until it is ended."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    logging.basicConfig(level=logging.WARNING)
    worker = Worker(build(plan), quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()

"""What both peers do with an event: its time, its row, and its score by the model that Driftline serves.

They score one event at a time, as their users' code does. Categories get a checksum as number where Driftline has
a keyed pseudonym. Only the features of the user are computed; the others stay unknown (NaN).
"""

import sys
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # peers run in environments of their own

import numpy as np
import torch

from learners.batch import ModelConfig, Schema
from learners.models import build_model

HOUR_S, DAY_S = 3600, 86_400


def event_seconds(event: dict[str, Any]) -> float:
    """Event time in seconds since 1970."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()


class Scorer:
    """The clicks task's first model, row by row."""

    def __init__(self, plan: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        schema = Schema.from_dict(plan["schema"])
        self._model = build_model(schema, ModelConfig.from_dict(plan["model"]), plan["seed"])
        self._categories = schema.categories
        self._numbers = np.full((1, len(schema.numbers)), np.nan, np.float32)
        names = ("position", "user_count_1h", "user_count_24h", "user_time_since_last")
        self._at = [schema.numbers.index(name) for name in names]

    def predict(self, event: dict[str, Any], hour: int, day: int, since_s: float) -> dict[str, Any]:
        """The prediction record of an event, given the user's counts and the seconds since the user's last event."""
        self._numbers[0, self._at] = event["position"], hour, day, since_s
        texts = (event.get(name) for name in self._categories)
        codes = np.array([[0 if text is None else 1 + zlib.crc32(text.encode()) for text in texts]], np.int64)
        score = float(self._model.predict(self._numbers, codes)[0])
        return {
            "event_id": event["event_id"],
            "task": "clicks",
            "score": score,
            "event_time": event["timestamp"],
        }

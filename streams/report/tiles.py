"""The figures at the top of the page: the compared arms, and the counts, some of which must be right."""

from collections.abc import Mapping
from html import escape
from typing import Any

from learners.target import SMALLER_IS_BETTER
from streams.report.curves import ARM_NAMES
from streams.report.data import COMPARED, FROZEN, METRICS, History
from streams.report.svg import tag
from streams.report.words import count, milliseconds, number, signed


def arm_tiles(history: History, figures: Mapping[str, Any]) -> str:
    """The compared arms after the change, each with its distance to the frozen one."""
    after = figures["after_drift"]
    means = after or figures["before_drift"]
    text = f"{METRICS[history.metric]} {'after the drift' if after else 'over the whole stream'}"
    tiles = []
    for arm in COMPARED:
        if arm not in means:
            continue
        parts = [tag("span", escape(ARM_NAMES[arm])), tag("b", number(means[arm])), tag("span", escape(text))]
        if arm != FROZEN and FROZEN in means:
            gain = means[arm] - means[FROZEN]
            good = gain < 0 if history.metric in SMALLER_IS_BETTER else gain > 0
            class_ = "good" if good else "bad"
            parts.append(tag("span", f"{'✓' if good else '✗'} {signed(gain)} against frozen", class_=class_))
        tiles.append(tag("div", *parts, class_=f"tile {arm}"))
    return tag("div", *tiles, class_="tiles arms") if tiles else ""


def count_tiles(history: History, figures: Mapping[str, Any]) -> str:
    """What went through, and whether it did as it must."""
    predictions, accepted, doubled = figures["predictions"], figures["accepted"], figures["doubled"]
    if accepted is None:
        fate = (f"{number(figures['late'])} of them late", "")
    elif predictions == accepted:
        fate = (f"✓ one for each of {number(accepted)} accepted events", "good")
    else:
        fate = (f"✗ but {number(accepted)} events were accepted", "bad")
    twice = ("✗ must be none", "bad") if doubled else ("✓ as it must be", "good")
    tiles = [
        _tile(number(predictions), "predictions", *fate),
        _tile(number(doubled), "events predicted twice", *twice),
        _tile(number(figures["dead_letters"]), "dead letters", "records that could not be used"),
        _tile(
            number(figures["labels"]), "labels joined", f"{number(figures['labels_by_default'])} by default"
        ),
        _tile(number(figures["alerts"]), "drift alarms", count(figures["swaps"], "swap") + " of the model"),
        _tile(number(figures["versions"]), "model versions", "of " + count(len(history.lineages), "lineage")),
    ]
    if history.scored:
        wait = f"99 % within {milliseconds(history.scored.p99)}"
        tiles.append(_tile(milliseconds(history.scored.p50), "median time to a prediction", wait))
    rates = figures["events_per_second"]
    if rates:
        mean = f"{number(round(rates['mean']))} on average"
        tiles.append(_tile(number(round(rates["peak"])), "predictions a second, peak", mean))
    return tag("div", *tiles, class_="tiles")


def _tile(value: str, name: str, detail: str, class_: str = "") -> str:
    return tag(
        "div",
        tag("b", escape(value)),
        tag("span", escape(name)),
        tag("span", escape(detail), class_=class_ or None),
        class_="tile",
    )

"""`driftline task new`: a first task file from a sample of the data, from answers, or from both.

What the answers leave open is guessed from the sample (streams/guess.py); streams/draft.py writes the text.
"""

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.spec import parse_views
from infra.errors import UserError
from streams import guess
from streams.draft import Answers, Draft, write
from streams.guess import Column
from streams.task import CALENDAR
from streams.task_parse import parse_task
from streams.task_toml import UNITS_MS, duration_ms, nearest

_WINDOWS = (("1m", "10m", "1h"), ("10m", "1h", "6h"), ("1h", "24h", "7d"), ("1d", "7d", "30d"))
_USUAL_WINDOWS = _WINDOWS[2]
_RARE = 0.05  # below this share of ones the average precision says more than the area under the ROC curve
_FREE_TEXT = 0.9  # share of rows with a text of their own that makes a column free text


def propose(sample: pa.Table | None, answers: Answers | None = None, source: str = "a sample") -> str:
    """A task file as text.

    Args:
        sample: some rows, or None to go by the answers alone.
        answers: what is known; fields named there must be columns of the sample.
        source: what the file's first comment calls the sample.

    Raises:
        UserError: neither answers nor sample say what the time or the key is, or an answer cannot be.
    """
    answers = answers or Answers()
    text = write(_from_answers(answers) if sample is None else _from_sample(sample, answers, source))
    parse_task(text, "the proposed task", Path("proposed.toml"))
    return text


def unclear(sample: pa.Table) -> list[str]:
    """Which answers ("time", "key") a proposal needs because no column of the sample looks like one."""
    columns = [column for column in guess.profile(sample) if _is_name(column.name)]
    if not sample.num_rows or len({column.name for column in columns}) < len(columns):
        return []  # `propose` says what is wrong
    time, _ = guess.guess_time(sample, columns)
    label = guess.guess_label(columns)
    keys = guess.guess_entities([column for column in columns if column.name not in (time, label)])
    return [*([] if time else ["time"]), *([] if keys else ["key"])]


def _from_answers(answers: Answers) -> Draft:
    for name in ("id", "time", "key", "label"):
        if not getattr(answers, name):
            raise UserError(
                f"without a sample the event's {name} field must be named", f"answer {name}, or give a sample"
            )
    usual = Answers(name="my-stream", time_format="iso8601", missing="0", metric="auc")
    return Draft(_delays(_filled(answers, usual)), _USUAL_WINDOWS, answers.numbers[:2])


def _filled(answers: Answers, usual: Answers) -> Answers:
    """`answers` with what is empty taken from `usual`."""
    return replace(usual, **{f.name: value for f in fields(Answers) if (value := getattr(answers, f.name))})


def _delays(answers: Answers) -> Answers:
    """With a delay, and a window that is as long as it or longer."""
    delay = answers.delay or "1d"
    ms = duration_ms(delay)
    if ms is None:
        raise UserError(
            f'"{delay}" is not a duration', 'answer with a number and ms, s, m, h or d, such as "7d"'
        )
    return replace(answers, delay=delay, window=answers.window or _duration(max(2 * ms, 600_000)))


def _duration(ms: int) -> str:
    unit = next(u for u in ("d", "h", "m", "s", "ms") if ms % UNITS_MS[u] == 0)
    return f"{ms // UNITS_MS[unit]}{unit}"


def _from_sample(sample: pa.Table, answers: Answers, source: str) -> Draft:
    columns = _columns(sample, answers, source)
    odd = [(name, "no field can have such a name") for name in sample.column_names if name not in columns]
    sample = sample.select(list(columns))
    notes: dict[str, str] = {}
    found = _roles(sample, columns, answers, source, notes)
    found, left_out = _fields(sample, columns, found)
    found = _delays(_labelling(sample, columns, found, notes))
    values = guess.guess_values([columns[name] for name in found.numbers])
    optional = [name for name in (*found.numbers, *found.categories) if columns[name].nulls]
    windows = _pick_windows(sample, columns, found)
    rows = f"{sample.num_rows:,} rows of {source}"
    left_out += odd
    return _without_clashes(Draft(found, windows, values, optional, notes, left_out, rows))


def _columns(sample: pa.Table, answers: Answers, source: str) -> dict[str, Column]:
    """The measured columns by name, those that can be fields."""
    if not sample.num_rows:
        raise UserError(f"{source} has no rows", "give a sample with at least one event")
    if len(set(sample.column_names)) < len(sample.column_names):
        raise UserError(f"{source} has two columns of one name", "rename one of them")
    columns = {c.name: c for c in guess.profile(sample) if _is_name(c.name)}
    # Ids and labels may come from elsewhere; every other field must be in the sample.
    named = (answers.time, answers.key, *answers.entities, *answers.numbers, *answers.categories)
    for name in filter(None, named):
        if name not in columns:
            fix = f"{nearest(name, columns)}its columns are {', '.join(columns)}"
            raise UserError(f"{source} has no column {name}", fix)
    if answers.label in columns and not guess.is_binary(columns[answers.label]):
        fix = "a binary task learns from 0 and 1, or from true and false"
        raise UserError(f"column {answers.label} of {source} is no label", fix)
    return columns


def _without_clashes(draft: Draft) -> Draft:
    """Leaves out a field whose name a feature of ours has."""
    answers = draft.answers
    views = parse_views(list(draft.entities), set(answers.numbers), draft.features)
    ours = {*CALENDAR, *(name for view in views.values() for name in view.columns)}
    clashes = [name for name in (*answers.numbers, *answers.categories) if name in ours]
    if not clashes:
        return draft
    left_out = [*draft.left_out, *((name, "a feature has the same name") for name in clashes)]
    kept = replace(
        answers,
        numbers=tuple(name for name in answers.numbers if name not in ours),
        categories=tuple(name for name in answers.categories if name not in ours),
    )
    values = [name for name in draft.values if name not in ours]
    return replace(draft, answers=kept, left_out=left_out, values=values)


def _is_name(name: str) -> bool:
    return re.fullmatch(r'[^\x00-\x1f\x7f-\x9f"\\\ud800-\udfff\u2028\u2029]{1,128}', name) is not None


def _roles(
    sample: pa.Table, columns: dict[str, Column], answers: Answers, source: str, notes: dict[str, str]
) -> Answers:
    """Which columns are time, label, key, entities and id."""
    said = {answers.id, answers.key, answers.label, *answers.entities, *answers.numbers, *answers.categories}
    free = [column for column in columns.values() if column.name not in said]
    time, style = guess.guess_time(sample, [columns[answers.time]] if answers.time else free)
    if not (time or answers.time):
        raise UserError(f"no column of {source} looks like the time of an event", "say which field it is in")
    found = replace(answers, time=time or answers.time, time_format=answers.time_format or style or "iso8601")
    free = [column for column in free if column.name != found.time]
    label = answers.label or guess.guess_label(free)
    if not label:
        label = "label" if "label" not in columns else "true_label"
        notes["label"] = "the sample has no column of zeros and ones: name the field of your label records"
    free = [column for column in free if column.name != label]
    entities = [*filter(None, [answers.key]), *(answers.entities or guess.guess_entities(free))]
    if not entities or (answers.entities and not answers.key):
        fix = "say which field identifies a person or thing that comes again"
        raise UserError(f"no column of {source} is the key that comes again from row to row", fix)
    entities = list(dict.fromkeys(entities))[: max(3, 1 + len(answers.entities))]
    event_id = answers.id or guess.guess_id([column for column in free if column.name not in entities])
    if not event_id:
        event_id = "event_id" if "event_id" not in columns else "id_of_event"
        notes["id"] = "no column differs in every row: producers must add one (a replay numbers rows)"
    name = answers.name or _slug(source)
    return replace(found, name=name, label=label, key=entities[0], entities=tuple(entities[1:]), id=event_id)


def _slug(source: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", source.rsplit(".", 1)[0].lower()).strip("-")[:50].strip("-")
    return slug if re.match(r"[a-z]", slug) else "my-stream"


def _fields(
    sample: pa.Table, columns: dict[str, Column], found: Answers
) -> tuple[Answers, list[tuple[str, str]]]:
    """Sort the other columns into numbers, categories and those that are left out with a reason."""
    numbers, categories = [*found.numbers], [*found.categories]
    small = [name for name in (found.key, *found.entities) if guess.is_small_thing(columns[name])]
    left_out = []
    used = {found.id, found.time, found.label, found.key, *found.entities, *numbers, *categories}
    categories += [name for name in small if name not in categories]
    label = columns.get(found.label)
    for name, column in columns.items():
        if name in used:
            continue
        reason = "it tells the label" if label and guess.leaks(sample, column, label) else _unfit(column)
        if reason:
            left_out.append((name, reason))
        elif column.kind in ("integer", "number") and not guess.identity(column):
            numbers.append(name)
        else:
            categories.append(name)
    return replace(found, numbers=tuple(numbers), categories=tuple(categories)), left_out


def _unfit(column: Column) -> str:
    """Why a column cannot be a field of the model, or nothing."""
    given = column.rows - column.nulls
    if not given:
        return "it is empty"
    if column.kind == "moment":
        return "it is a second time"
    if column.kind == "other":
        return "its type is not supported yet"
    if column.longest > 256 or (
        column.kind == "text" and given >= 50 and column.distinct > _FREE_TEXT * given
    ):
        return "nearly every row has a text of its own"
    return ""


def _labelling(
    sample: pa.Table, columns: dict[str, Column], found: Answers, notes: dict[str, str]
) -> Answers:
    """What a missing label means, and the metric, from the labels of the sample."""
    column = columns.get(found.label)
    if not found.delay:
        notes["delay"] = "the sample cannot tell how long after the event a label comes: set both"
    if column is None or not column.distinct:
        return replace(found, missing=found.missing or "0", metric=found.metric or "auc")
    labels = pc.drop_null(sample[found.label].cast(pa.float64()))
    share = float(pc.mean(labels).as_py() or 0)
    missing = "0" if share == 1 and column.nulls else "drop"
    metric = "average_precision" if 0 < share < _RARE else "auc"
    return replace(found, missing=found.missing or missing, metric=found.metric or metric)


def _pick_windows(sample: pa.Table, columns: dict[str, Column], found: Answers) -> Sequence[str]:
    """Windows that hold a few events of one key: the middle one is at least twice the gap between two."""
    column = columns[found.time]
    if column.kind == "moment":
        span = pc.min_max(sample[found.time].cast(pa.timestamp("ms"), safe=False).cast(pa.int64()))
        ms = float(span["max"].as_py() - span["min"].as_py())
    elif found.time_format in ("epoch_ms", "epoch_s"):
        ms = (column.high - column.low) * (1 if found.time_format == "epoch_ms" else 1000)
    else:
        return _USUAL_WINDOWS
    gap = ms * columns[found.key].distinct / sample.num_rows
    return next((w for w in _WINDOWS if (duration_ms(w[1]) or 0) >= 2 * gap), _WINDOWS[-1])

"""Texts, lists and images of an event: what is kept of them in a row, and what makes an event unusable."""

import base64
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from streams.contents import items, tokens
from streams.events import EventDecoder
from streams.task import Task
from streams.task_parse import parse_task
from streams.up import sample_event
from streams.wire import decode_rows, encode_rows
from tests.stream_records import HIDDEN, NOW_MS, TRIPS, event, sent

FIELDS = """
photo = { type = "image", height = 4, width = 5, required = false }
comment = { type = "text", tokens = 4, max_length = 30 }
tags = { type = "list", items = 3, max_length = 8, required = false }
[entities]"""


def made(fields: str = FIELDS, more: str = "") -> Task:
    text = TRIPS.replace("[entities]", fields) + more
    return parse_task(text, "trips.toml", Path("/somewhere/trips.toml"))


TASK = made()
GREY = base64.b64encode(b"P5 5 4 255 " + bytes(range(100, 120))).decode()
USUAL = {"comment": "Fine", "driver": "d", "zone": 1, "city": "Ulm", "fare": 1.0, "at": NOW_MS}


def test_blocks_stand_behind_the_categories_and_images_last() -> None:
    assert [(b.name, b.kind, b.width) for b in TASK.blocks] == [
        ("comment", "text", 4), ("tags", "list", 3), ("photo", "image", 3),
    ]  # fmt: skip
    assert TASK.schema.fields == ("city", "comment", "tags")
    assert TASK.numbers == made("[entities]").numbers


def test_tokens_items_and_pixels_arrive_in_their_places() -> None:
    full = event(
        **USUAL | {"comment": "So, SO nice, indeed", "tags": ["b", 7, True, "b", "x"], "photo": GREY}
    )
    rows, broken = EventDecoder(TASK, HIDDEN).decode(
        [sent(full), sent(event(**USUAL | {"trip": "t-2"}), offset=1)]
    )
    assert broken == []
    schema = TASK.schema
    for name, values in {"comment": ["so", ",", "so", "nice"], "tags": ["b", "7", "True"]}.items():
        found = rows.categories[:, schema.columns(name)]
        assert found[0].tolist() == [HIDDEN.one(name, value) for value in values]
    assert rows.categories[1, schema.columns("comment")].tolist() == [HIDDEN.one("comment", "fine"), 0, 0, 0]
    assert not rows.categories[1, schema.columns("tags")].any()
    packed = np.ascontiguousarray(rows.categories[:, schema.columns("photo")])
    assert packed.view(np.uint8)[0, :20].tolist() == list(range(100, 120))
    assert not packed[1].any()
    assert rows.categories.shape == (2, schema.ids)


def test_the_event_that_a_producer_is_shown_is_a_good_one() -> None:
    rows, broken = EventDecoder(TASK, HIDDEN).decode([sent(sample_event(TASK) | {"at": NOW_MS})])
    assert ([letter.detail for letter in broken], len(rows)) == ([], 1)


def test_no_word_leaves_the_decoder() -> None:
    rows, _ = EventDecoder(TASK, HIDDEN).decode(
        [sent(event(**USUAL | {"comment": "unmistakable", "tags": ["secretive"]}))]
    )
    data = encode_rows(rows)
    assert b"unmistakable" not in data
    assert b"secretive" not in data
    np.testing.assert_array_equal(decode_rows(data, TASK.rows_hash).categories, rows.categories)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("comment", None, "`comment`"),
        ("comment", 5, "Expected `str`"),
        ("comment", "x" * 31, "comment has 31 characters, more than max_length 30"),
        ("tags", "b", "Expected `array"),
        ("tags", ["b", None], "Expected `"),
        ("tags", ["b", "longer than 8"], "tags has 13 characters, more than max_length 8"),
        ("photo", "?", "photo is no base64"),
        ("photo", base64.b64encode(b"GIF89a").decode(), "photo is neither JPEG, PNG, PGM nor PPM"),
        ("photo", 3, "Expected `str"),
    ],
)
def test_what_cannot_be_read_is_set_aside_with_the_reason(field: str, value: object, words: str) -> None:
    rows, broken = EventDecoder(TASK, HIDDEN).decode([sent(event(**USUAL | {field: value}))])
    assert (len(rows), [letter.reason for letter in broken]) == (0, ["invalid"])
    assert words in broken[0].detail


def test_words_are_runs_of_letters_and_characters_are_threes_between_borders() -> None:
    assert tokens("Ça va?  It's 3.5 €", "words", 99) == ["ça", "va", "?", "it", "'", "s", "3", ".", "5", "€"]
    assert tokens("Ab?", "characters", 99) == ["<ab", "ab>", "<?>"]
    assert tokens("", "words", 9) == tokens(" \n", "characters", 9) == []


@given(st.text(), st.sampled_from(["words", "characters"]), st.integers(1, 9))
def test_tokens_are_few_and_the_first_ones(text: str, split: str, most: int) -> None:
    found = tokens(text, split, most)
    assert len(found) <= most
    assert found == tokens(text, split, 10_000)[:most]
    assert tokens(text.upper().lower(), split, most) == tokens(
        text.upper().lower().upper().lower(), split, most
    )


def test_items_are_the_first_different_ones_as_text() -> None:
    assert items([1.0, "1", 1.5, False, "a", "b"], 4) == ["1", "1.5", "False", "a"]


def test_how_a_text_is_split_is_part_of_the_schema() -> None:
    other = made(FIELDS.replace("tokens = 4", 'tokens = 4, split = "characters"'))
    assert other.schema_hash != TASK.schema_hash
    assert made(FIELDS.replace("max_length = 30", "max_length = 40")).schema_hash == TASK.schema_hash


@pytest.mark.parametrize(
    ("old", "new", "said", "fix"),
    [
        ("tokens = 4", "tokens = 0", "event.fields.comment.tokens must be from 1 to 256", "tokens = 32"),
        ("tokens = 4", 'split = "letters"', 'event.fields.comment.split is "letters"', "words, characters"),
        ("items = 3", "tokens = 3", "event.fields.tags.tokens has no meaning for a list", 'type = "text"'),
        ("height = 4", "min = 4", "event.fields.photo.min has no meaning for an image", 'type = "number"'),
        ("height = 4", "height = 33", "event.fields.photo.height must be from 4 to 32", "height = 16"),
        ("height = 4", "channels = 2", "event.fields.photo.channels is 2", "1 (grey) or 3"),
        ("[entities]", 'driver = { type = "text" }\n[entities]', "cannot be a text", "category"),
        ('"image"', '"picture"', 'event.fields.photo.type is "picture"', "number, category, text, list, image"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_said(old: str, new: str, said: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        made(FIELDS.replace(old, new, 1))
    assert said in caught.value.message
    assert fix in caught.value.fix


def test_words_may_be_listed_among_the_pseudonyms() -> None:
    made(more='[privacy]\npseudonymise = ["comment", "tags"]\n')
    with pytest.raises(UserError, match="photo"):
        made(more='[privacy]\npseudonymise = ["photo"]\n')

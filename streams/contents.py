"""What a text, a list or an image of an event becomes: tokens, items, or a few pixels. The raw value goes no further.

Tokens and items are kept as pseudonyms of their field, as categories are. Pixels are kept as they are, small.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.blocks import PIXELS, Block
from streams.images import pixels
from streams.privacy import Pseudonymiser
from streams.task import Field

_WORD = re.compile(r"\w+|[^\w\s]")
_GRAM = 3


def tokens(text: str, split: str, most: int) -> list[str]:
    """The first `most` tokens of a text, in small letters.

    "words" are runs of letters and digits, and every other visible character by itself. "characters" are the runs of
    three characters in each word between "<" and ">" (as in Bojanowski et al. 2017): "ab" is "<ab" and "ab>". They
    find words that are misspelt or inflected, and do for languages without spaces.
    """
    words = (match[0] for match in _WORD.finditer(text.casefold()))
    found: list[str] = []
    for word in words:
        found += [word] if split == "words" else _grams(f"<{word}>")
        if len(found) >= most:
            break
    return found[:most]


def _grams(word: str) -> list[str]:
    return [word[i : i + _GRAM] for i in range(len(word) - _GRAM + 1)]


def items(values: Sequence[Any], most: int) -> list[str]:
    """The first `most` different values of a list, as texts, in their order."""
    return list(dict.fromkeys(map(_text, values)))[:most]


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def reader_of(field: Field) -> Callable[[Any], Any]:
    """What to keep of a value of a text, list or image field; ValueError says why it cannot be used."""
    if field.type == "text":
        return lambda text: tokens(text, field.split, field.tokens)
    if field.type == "list":
        return lambda values: items(values, field.items)
    return lambda text: pixels(text, field.shape)


def columns_of(block: Block, values: Sequence[Any], pseudonymiser: Pseudonymiser) -> NDArray[np.int64]:
    """The int64 columns [n, width] of n values that `reader_of` gave, None where there was none.

    Ids fill the first places, and 0 the rest; eight bytes of an image make one number.
    """
    if block.kind == "image":
        size = block.width * PIXELS
        data = b"".join((value or b"").ljust(size, b"\0") for value in values)
        return np.frombuffer(data, "<i8").reshape(len(values), block.width)
    lists = [value or () for value in values]
    filled = np.arange(block.width) < np.array([len(found) for found in lists])[:, None]
    ids = np.zeros(filled.shape, np.int64)
    ids[filled] = pseudonymiser.column(block.name, [token for found in lists for token in found])
    return ids

"""Pseudonyms: the only form in which a person's or thing's identity is kept.

A pseudonym is a keyed 64-bit BLAKE2b hash (RFC 7693) of the field's name and the value's text. Without the key nobody
can go back by trying values; with it the owner can find one person's rows. Among ten million values the chance that any
two share a pseudonym is about 3 in a million (birthday bound n²/2⁶⁵).
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

MISSING = 0


class Pseudonymiser:
    """Turns values of a field into int64 pseudonyms; 0 means missing.

    Numbers and their text are the same value (5 and "5"), since a label may come as text where the event had a number.
    """

    remember = 1_000_000
    """Values of a field whose pseudonyms are remembered, about; then it starts anew."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._cache: dict[
            tuple[object, ...], _Known
        ] = {}  # of one type each: 1 and True are one key of a dict

    @property
    def cached(self) -> int:
        """How many pseudonyms are remembered."""
        return sum(map(len, self._cache.values()))

    def one(self, field: str, value: object) -> int:
        """The pseudonym of one value of `field`."""
        return int(self.column(field, [value])[0])

    def text(self, field: str, value: object) -> str:
        """The pseudonym as 16 hexadecimal digits, for ids that travel as text."""
        return self.texts(field, [value])[0]

    def texts(self, field: str, values: Sequence[object]) -> list[str]:
        """The pseudonyms of `n` values as `text` gives them. They are not remembered: an id comes once."""
        salt = _salt(field)
        return [f"{self._hash(salt, value) & 0xFFFFFFFFFFFFFFFF:016x}" for value in values]

    def column(self, field: str, values: Sequence[object]) -> NDArray[np.int64]:
        """Pseudonyms int64 [n] of `n` values (str, int, float, bool or None)."""
        kinds = set(map(type, values)) - {type(None)}
        salt = _salt(field)
        if len(kinds) > 1 or not kinds <= _REMEMBERED:
            return np.array([self._hash(salt, value) for value in values], np.int64)
        known = self._cache.get((field, *kinds))
        if known is None or len(known) > self.remember:
            known = self._cache[(field, *kinds)] = _Known(lambda value: self._hash(salt, value))
        return np.array([known[value] for value in values], np.int64)

    def _hash(self, salt: bytes, value: object) -> int:
        if value is None:
            return MISSING
        digest = hashlib.blake2b(_text(value).encode(), digest_size=8, key=self._secret, person=salt).digest()
        return int.from_bytes(digest, "little", signed=True) or 1


_REMEMBERED: set[type] = {str, int}


class _Known(dict[object, int]):
    """Pseudonyms by value; one that is asked for and not there is made."""

    def __init__(self, make: Callable[[object], int]) -> None:
        self._make = make

    def __missing__(self, value: object) -> int:
        pseudonym = self[value] = self._make(value)
        return pseudonym


def _salt(field: str) -> bytes:
    """16 bytes for a name of any length, so that equal values of two fields have different pseudonyms."""
    return hashlib.blake2b(field.encode(), digest_size=16).digest()


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)

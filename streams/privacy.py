"""Pseudonyms: the only form in which a person's or thing's identity is kept.

A pseudonym is a keyed 64-bit BLAKE2b hash (RFC 7693) of the field's name and the value's text. Without the key nobody
can go back by trying values; with it the owner can find one person's rows. Among ten million values the chance that any
two share a pseudonym is about 3 in a million (birthday bound n²/2⁶⁵).
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MISSING = 0
_CACHE_LIMIT = 1_000_000


class Pseudonymiser:
    """Turns values of a field into int64 pseudonyms; 0 means missing.

    Numbers and their text are the same value (5 and "5"), since a label may come as text where the event had a number.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._cache: dict[str, dict[object, int]] = {}

    def one(self, field: str, value: object) -> int:
        """The pseudonym of one value of `field`."""
        return int(self.column(field, [value])[0])

    def text(self, field: str, value: object) -> str:
        """The pseudonym as 16 hexadecimal digits, for ids that travel as text."""
        return f"{self.one(field, value) & 0xFFFFFFFFFFFFFFFF:016x}"

    def column(self, field: str, values: Sequence[object]) -> NDArray[np.int64]:
        """Pseudonyms int64 [n] of `n` values (str, int, float, bool or None)."""
        cache = self._cache.setdefault(field, {})
        if len(cache) > _CACHE_LIMIT:
            cache.clear()
        salt = hashlib.blake2b(field.encode(), digest_size=16).digest()  # any length of name
        out = []
        for value in values:
            pseudonym = cache.get(value) if type(value) is str else None
            if pseudonym is None:
                pseudonym = self._hash(salt, value)
                if type(value) is str:
                    cache[value] = pseudonym
            out.append(pseudonym)
        return np.array(out, np.int64)

    def _hash(self, salt: bytes, value: object) -> int:
        if value is None:
            return MISSING
        digest = hashlib.blake2b(_text(value).encode(), digest_size=8, key=self._secret, person=salt).digest()
        return int.from_bytes(digest, "little", signed=True) or 1


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)

"""Columns of a row that only make sense together: the last events of an entity, a text, a list, an image."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

Kind = Literal["series", "codes", "text", "list", "image"]

EMBEDDED: tuple[Kind, ...] = ("codes", "text", "list")
"""Kinds whose values are ids, each of which has a row in the model's table. 0 is an empty place."""

PIXELS = 8
"""Bytes of an image that travel in one int64 column."""


@dataclass(frozen=True)
class Block:
    """A group of columns that a family for its `kind` reads as one thing.

    series  the last numbers of an entity: the number columns NAME_last_1 (the newest) to NAME_last_`length`
    codes   the last categories of an entity, newest first: `length` int64 columns
    text    the tokens of a text in their order: `length` int64 columns, the last ones 0
    list    the ids of a list: `length` int64 columns, the last ones 0
    image   `shape` is (height, width, channels); its bytes row by row, `PIXELS` in one int64 column, little-endian

    `entity` is whose events those of a series or of codes are; blocks of one entity run side by side.
    """

    name: str
    kind: Kind
    length: int
    entity: str = ""
    shape: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """How many columns of the int64 matrix it takes."""
        return {"series": 0, "image": -(-self.length // PIXELS)}.get(self.kind, self.length)

    @property
    def embedded(self) -> bool:
        """Whether its values are ids that the model's table has rows for."""
        return self.kind in EMBEDDED

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_dict` is its inverse."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**raw, "shape": tuple(raw["shape"])})

"""Counting different values: a bitmap in several resolutions, of which unions count the same as the whole would.

A window has one sketch for each of its tiles, and reads their union: see `windows` for tiles, slots and stamps.

A sketch is SKETCH_WORDS words of 64 bits. A value is hashed; the hash chooses one bit, and that bit is set. Seven in
eight values fall on level 0, which has 192 bits; each further level has 64 bits and gets a quarter of what is left,
the last one all of it (Estan, Varghese and Fisk 2003, "Bitmap algorithms for counting active flows"). Of n values that
fell on m bits, m · ln(m / zeros) is an estimate of n. The finer levels, summed up, estimate their share of all values;
of the levels that are not full, the one with the largest share is where the sum starts. The result is rounded.

Error (root mean square over random values; `tests/unit/test_aggregates_sketch.py` measures it): 6 % up to 200 values,
8 % up to 600, 15 % up to 100,000, 20 % up to 500,000. No estimate exceeds about 545,000. A HyperLogLog of 48 bytes has
13 % throughout: few values, which are what most entities have, are where the bitmap is better, and its union is one OR
a word.
"""

import numpy as np
from numpy.typing import NDArray

from featurestore.layout import SKETCH_WORDS, Float64s, Int64s
from featurestore.windows import Bools, kernel

FIRST_WORDS = 3
"""Words of level 0; each further level has one."""

SHARES = (1.0, 2.0**-3, 2.0**-5, 2.0**-7, 2.0**-9, 2.0**-11)
"""Share of all values that falls on each level or on one after it."""

FULL = 0.95
"""A level with more than this share of its bits set tells too little."""

NOTHING = -1
"""The bit of a value that is missing."""

_WORD = 64


def bits_of_numbers(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bit i64[n] for each number f64[n], NOTHING for one that is not finite; 0 and -0 are the same value."""
    return np.where(np.isfinite(values), _bits((values + 0.0).view(np.uint64)), NOTHING)


def bits_of_hashes(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bit i64[n] for each hash or pseudonym i64[n], NOTHING for a 0: a missing one."""
    return np.where(hashes != 0, _bits(hashes.view(np.uint64)), NOTHING)


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The bit 0 … 64 · SKETCH_WORDS - 1 of each value: its level by the high half of a hash, then by the low."""
    mixed = _mixed(values)
    level = np.zeros(len(mixed), np.int64)
    for share in SHARES[1:]:
        level += mixed < np.uint64(int(share * 2**64))
    first, size = _WORD * (FIRST_WORDS - 1 + level), np.full(len(mixed), _WORD, np.int64)
    first[level == 0], size[level == 0] = 0, _WORD * FIRST_WORDS
    low = (mixed & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return first + (low * size >> 32)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spreads values over 64 bits (splitmix64), since they may come in any pattern."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def _ones(word: int) -> int:
    """How many of the 64 bits are set."""
    x = np.uint64(word)
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return int((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def _estimate(union: Int64s) -> float:
    """How many different values set the bits of `union` i64[SKETCH_WORDS]."""
    found, answer = 0.0, 0.0
    for level in range(len(SHARES) - 1, -1, -1):
        first = FIRST_WORDS - 1 + level if level else 0
        ones = 0
        for word in range(first, FIRST_WORDS + level):
            ones += _ones(union[word])
        size = _WORD * (FIRST_WORDS + level - first)
        if ones:
            found += size * np.log(size / max(size - ones, 1))
        if ones <= FULL * size or level == len(SHARES) - 1:
            answer = found / SHARES[level]
    return float(np.rint(answer))


@kernel
def _unite(record: Float64s, words: Int64s, first: int, tiles: int, newest: int, union: Int64s) -> None:
    """The union of the sketches of the tiles that the window at tile `newest` covers."""
    union[:] = 0
    for slot in range(first, first + tiles * (1 + SKETCH_WORDS), 1 + SKETCH_WORDS):
        if newest - tiles < record[slot] <= newest:
            for word in range(SKETCH_WORDS):
                union[word] |= words[slot + 1 + word]


@kernel
def _mark(record: Float64s, words: Int64s, first: int, tiles: int, tile: int, bit: int) -> None:
    """Sets a bit, if there is one, in the sketch of a tile, unless a newer tile has its slot."""
    slot = first + (tile % tiles) * (1 + SKETCH_WORDS)
    if record[slot] > tile:
        return
    if record[slot] < tile:
        record[slot] = tile
        words[slot + 1 : slot + 1 + SKETCH_WORDS] = 0
    if bit >= 0:
        words[slot + 1 + bit // _WORD] |= 1 << (bit % _WORD)


@kernel
def fold_sketches(
    cells: Float64s,
    words: Int64s,
    sketches: Int64s,
    tiles: int,
    rows: Int64s,
    times: Int64s,
    bits: Int64s,
    add: Bools,
    out: NDArray[np.float32],
) -> None:
    """Row by row: reads the numbers of different values of its entity, then adds its own where `add` says so.

    cells f64[capacity, words], and `words` the same memory as i64 · rows i64[n], -1 = unknown entity
    times i64[n] ms · bits i64[S, n] · add bool[n] · out f32[n, F], of which only these features are written
    """
    union = np.zeros(SKETCH_WORDS, np.int64)
    for i in range(rows.shape[0]):
        row = rows[i]
        for s in range(sketches.shape[0]):
            hop, first, place, column = sketches[s]
            tile = times[i] // hop
            out[i, column] = 0.0
            if row >= 0:
                _unite(cells[row], words[row], first, tiles, tile, union)
                out[i, column] = _estimate(union)
            if add[i]:
                _mark(cells[row], words[row], first, tiles, tile, bits[place, i])

"""First weights, compiled: numbers in [0, 1) that are a pure function of a seed and a place.

It is an integer hash (splitmix64, Steele, Lea & Flood 2014), not a random generator, so that it is the same on every
machine and with every version of torch. One call draws a whole table without Python's lock: a worker draws one for
every swap, beside the thread that scores.
"""

import numpy as np
from numpy.typing import NDArray

from learners.models.vocabulary_kernels import kernel


@kernel
def _unit(salt: np.uint64, cell: np.uint64) -> np.float32:
    """24 bits of the hash of a cell."""
    bits = cell * np.uint64(0x9E3779B97F4A7C15) + salt
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return np.float32(bits >> np.uint64(40)) * np.float32(2.0**-24)


@kernel
def fill_cells(unit: NDArray[np.float32], salt: np.uint64, cells: NDArray[np.uint64]) -> None:
    """Writes the number of each of `cells` u64[m] into unit f32[m]."""
    for i in range(len(cells)):
        unit[i] = _unit(salt, cells[i])


@kernel
def fill_rows(
    table: NDArray[np.float32], salt: np.uint64, rows: NDArray[np.int64], linear: int, largest: np.float32
) -> None:
    """Writes rows i64[u] into table f32[u, width]: 0 in the first `linear` columns, then uniform in ± largest.

    The cell of a column is row · width + column.
    """
    width = table.shape[1]
    for i in range(len(rows)):
        start = np.uint64(rows[i]) * np.uint64(width)
        for column in range(width):
            if column < linear:
                table[i, column] = 0.0
            else:
                unit = _unit(salt, start + np.uint64(column))
                table[i, column] = (unit * np.float32(2.0) - np.float32(1.0)) * largest

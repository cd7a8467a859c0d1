"""Where the features of one entity stand in a row: among its numbers, and those that are codes among its categories."""

import numpy as np
from numpy.typing import NDArray

from featurestore.spec import View
from streams.rows import Rows
from streams.task import Task


class FeatureColumns:
    """Puts a view's features, float32 [n, F] in the order of `View.columns`, into rows, and takes them out again.

    NaN is a missing one; among the categories that is 0, which no code is.
    """

    def __init__(self, task: Task, view: View) -> None:
        at = {name: i for i, name in enumerate(view.columns)}
        blocks = [block for block in task.blocks if block.kind == "codes" and f"{block.name}_last_1" in at]
        coded = [f"{block.name}_last_{i}" for block in blocks for i in range(1, block.length + 1)]
        self._coded = [at[name] for name in coded]
        self._plain = [i for name, i in at.items() if name not in coded]
        self._numbers = [task.numbers.index(view.columns[i]) for i in self._plain]
        starts = [task.schema.columns(block.name).start for block in blocks]
        self._ids = [
            start + i for start, block in zip(starts, blocks, strict=True) for i in range(block.length)
        ]

    def put(self, rows: Rows, features: NDArray[np.float32]) -> None:
        """Write features into rows, in place."""
        rows.numbers[:, self._numbers] = features[:, self._plain]
        if self._coded:
            rows.categories[:, self._ids] = np.nan_to_num(features[:, self._coded])

    def of(self, rows: Rows) -> NDArray[np.float32]:
        """The features that `put` wrote."""
        features = np.empty((len(rows), len(self._plain) + len(self._coded)), np.float32)
        features[:, self._plain] = rows.numbers[:, self._numbers]
        codes = rows.categories[:, self._ids]
        features[:, self._coded] = np.where(codes == 0, np.nan, codes)
        return features

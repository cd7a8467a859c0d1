"""How much a model's answers rest on each column: the loss that it gains when the column is shuffled.

Source: Breiman 2001, "Random Forests", section 10. Columns that say the same share their importance, and the rows that
are asked about decide: it is what the model makes of recent examples, not what is true of the world.
"""

from collections.abc import Sequence

import numpy as np

from learners.batch import Batch
from learners.models import EventModel


def importances(
    model: EventModel, rows: Batch, columns: Sequence[str], random: np.random.Generator
) -> dict[str, float]:
    """Loss an event (nats; of a value, squared error) that it costs to shuffle a column among the rows, by column.

    `columns` name the number columns of `rows`, then those of its ids. Equal generators shuffle alike, so that two
    models can be compared.
    """
    numbers, ids = rows.numbers.copy(), rows.categories.copy()
    losses = model.schema.target.losses
    usual = losses(rows.label, model.predict(numbers, ids)).mean()
    order = random.permutation(len(rows))
    found = {}
    for place, column in enumerate(columns):
        matrix, at = (numbers, place) if place < numbers.shape[1] else (ids, place - numbers.shape[1])
        kept = matrix[:, at].copy()
        matrix[:, at] = kept[order]
        found[column] = float(losses(rows.label, model.predict(numbers, ids)).mean() - usual)
        matrix[:, at] = kept
    return found

"""Labels that come late: how much an example counts that was taken for a negative and may be none.

An example without a label in its window is learned with the task's value for a missing label. If its label comes late
after all and says otherwise, the example comes again with it. So late positives are seen twice, once with each label,
and what is learned as negative holds (1 - p) real negatives to q p that are none: p is the probability of a positive, q
the share of positives that come late. Each default therefore counts with the probability that it is real,

    w = (1 - p) / (1 - p + q p),

and everything else with 1: in expectation the lesson is that of labels without delay. This is the importance weight of
fake negatives of Ktena et al. 2019 ("Addressing delayed feedback for continuous training with neural networks in CTR
prediction"), for whom q is 1, and of Yang et al. 2021 ("Capturing delayed feedback in conversion rate prediction via
elapsed-time sampling", ES-DFM), less a factor that all rows of one x have in common. As there, p is the model's own
score, here the one that was served. q is one number that the join counts, where ES-DFM learns a function of x.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 0.999  # no default counts for nothing, however sure the model was of the other label


def real_share(
    label: NDArray[Any], served: NDArray[np.float32], late_share: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weights [n] of rows with the labels [n], served scores [n] or [n, K] and shares q [n].

    1 where q is 0 or no score was served.
    """
    if served.ndim > 1:  # of several classes
        otherwise = 1.0 - served[np.arange(len(label)), label.astype(np.int64)]
    else:
        otherwise = np.where(label > 0.5, 1.0 - served, served)
    other = np.clip(otherwise, 0.0, LARGEST).astype(np.float64)
    real = 1.0 - other
    share = real / (real + late_share * other)
    weights: NDArray[np.float32] = np.where(np.isnan(share), 1.0, share).astype(np.float32)
    return weights

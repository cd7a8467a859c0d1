"""Linear models over scaled numbers and one hashed weight a category value, and the kernel machine.

A support vector machine learns a margin, not a probability. Its score is Platt's sigmoid of the margin (Platt
1999), fitted online: two numbers learn by cross-entropy beside the margin, which does not feel them. Where labels are
values, the margin is the value (support vector regression).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from learners.batch import ModelConfig, Schema
from learners.losses import bce, entropy_of_classes, mean
from learners.models.base import LARGEST_LOGIT
from learners.models.net import Net, uniform_cells


class Logistic(Net):
    """logit = base rate + w · numbers + Σ table[category]. Convex, fast, and easy to read."""

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=schema.target.width)
        self.output = self.linear(len(schema.numbers) + len(config.recent_labels), self.outputs, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Logits [n]; see the base class for shapes."""
        return self.flat(self.output(self.beside(scaled))) + self.wide(rows)


class Margin(Net):
    """A head that is a margin, or one for each class: trained by the hinge loss, scored through the online sigmoid.

    `sigmoid` [2] is (log of the slope, shift from the base rate), (0, 0) at first. The slope stays positive: it
    cannot turn the order of scores round. Of several classes it is a softmax, with a shift for each: [1 + K]. Where
    values are predicted there is none, and the margin is the value.
    """

    def __init__(self, schema: Schema, config: ModelConfig, seed: int, width: int) -> None:
        super().__init__(schema, config, seed, width)
        if not self.values:
            self.sigmoid = nn.Parameter(torch.zeros(1 + self.outputs))

    def calibrated(self, margins: Tensor) -> Tensor:
        """Logits [n] or [n, K] of as many margins."""
        return torch.exp(self.sigmoid[0]) * margins + self.sigmoid[1:] + self.base_rate()

    def margins(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """Margins [n] or [n, K] of raw numbers [n, N] and gathered table rows [n, C, width]; above 0 is positive."""
        return self.said(numbers, rows).float()

    def logits(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """See the base class."""
        margins = self.margins(numbers, rows)
        return margins if self.values else self.calibrated(margins)

    def objective(self, numbers: Tensor, rows: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
        """The hinge loss of the margins, and the cross-entropy of the sigmoid over them as they are."""
        if self.values:
            return super().objective(numbers, rows, label, weight)
        margins = self.margins(numbers, rows)
        fixed = margins.detach().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        entropy = entropy_of_classes if self.schema.target.classes else bce
        return self.loss(margins, label, weight) + mean(entropy(self.calibrated(fixed), label), weight)


class LinearSVM(Margin):
    """Linear support vector machine by stochastic gradients (Shalev-Shwartz et al. 2007); L2 by `weight_decay`."""

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=schema.target.width)
        self.output = self.linear(len(schema.numbers), self.outputs, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Margins [n] or [n, K]; see the base class for shapes."""
        return self.flat(self.output(scaled)) + self.wide(rows)


class KernelSVM(Margin):
    """A support vector machine with a Gaussian kernel, by random Fourier features (Rahimi & Recht 2007).

    The kernel is over the scaled numbers and the categories' learned embeddings, x of d columns: the features
    are √2 cos(Wx + b), whose inner products, divided by their number, approach
    exp(-‖x - y‖² / (2 d kernel_width²)). W and b are functions of the seed and never travel. A linear part is
    beside it.
    """

    directions: Tensor
    phases: Tensor

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=schema.target.width + config.embedding)
        inputs = len(schema.numbers) + len(schema.fields) * config.embedding
        directions, phases = fourier(seed, inputs, config.random_features)
        spread = config.kernel_width * inputs**0.5
        self.register_buffer("directions", directions / spread, persistent=False)
        self.register_buffer("phases", phases, persistent=False)
        self.output = self.linear(len(schema.numbers) + config.random_features, self.outputs, zero=True)

    def head(self, scaled: Tensor, rows: Tensor) -> Tensor:
        """Margins [n] or [n, K]; see the base class for shapes."""
        features = self.features(torch.cat((scaled, rows[:, :, self.outputs :].flatten(1)), 1))
        return self.flat(self.output(torch.cat((scaled, features), 1))) + self.wide(rows)

    def features(self, inputs: Tensor) -> Tensor:
        """Random Fourier features [n, random_features] of inputs [n, d], each of mean square 1."""
        return torch.cos(torch.addmm(self.phases, inputs, self.directions)) * math.sqrt(2.0)


def fourier(seed: int, inputs: int, features: int) -> tuple[Tensor, Tensor]:
    """Standard normal directions [inputs, features] (Box & Muller 1958) and phases [features] in [0, 2π)."""
    count = inputs * features
    unit = uniform_cells(seed ^ 0x5FC6E5D1, np.arange(2 * count + features, dtype=np.uint64)).astype(
        np.float64
    )
    radius = np.sqrt(-2.0 * np.log1p(-unit[:count]))
    normal = radius * np.cos(2.0 * np.pi * unit[count : 2 * count])
    phases = 2.0 * np.pi * unit[2 * count :]
    return (
        torch.from_numpy(normal.astype(np.float32).reshape(inputs, features)),
        torch.from_numpy(phases.astype(np.float32)),
    )

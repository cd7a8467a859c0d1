"""The lesson of a net that learns in steps of a few rows: its steps are compiled (`step_kernels`).

`lesson.is_compiled` says which settings have it. The rest learns through torch, which is as fast from steps of some
hundred rows on.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners import step_kernels as kernels
from learners.batch import ModelConfig
from learners.lesson import GradientLesson, Learned
from learners.models.base import compress
from learners.models.factorization import CROSS_LAYERS
from learners.models.net import Net

BLOCK = 4096  # rows that one call works off, in whole steps
_BESIDE = {
    "mlp": kernels.NOTHING,
    "logistic": kernels.NOTHING,
    "deepfm": kernels.NUMBERS,
    "dcn": kernels.CROSSED,
}
_RULES = {"sgd": kernels.SGD, "adagrad": kernels.ADAGRAD, "adam": kernels.ADAM, "adamw": kernels.ADAMW}


class CompiledLesson(GradientLesson):
    """A `GradientLesson` with the same memory, and steps that never leave compiled code."""

    def __init__(self, model: Net, config: ModelConfig) -> None:
        super().__init__(model, config)
        self._shape = _shape(model, config)
        self._settings = kernels.Settings(
            _RULES[config.optimiser], config.weight_decay, config.clip_norm, config.positive_weight
        )
        self._scratch = _scratch(self._shape, model, config)

    @property
    def stride(self) -> int:
        """Rows of one call: whole steps, except at the end of a batch."""
        return BLOCK // self.batch_size * self.batch_size

    def learn(
        self, numbers: Tensor, index: Tensor, label: Tensor, weight: Tensor, *, scored: bool = False
    ) -> Learned:
        """See the base class; several steps at once."""
        steps = -(-len(label) // self.batch_size)
        labels, scores = label.numpy().copy(), np.empty(len(label), np.float32)
        accepted = kernels.learn(
            self._shape, self._settings, self._weights(), self._statistics(), self._scratch,
            compress(numbers).numpy(), index.numpy(), labels, weight.numpy(),
            self._rates(steps), self.batch_size, scores,
        )  # fmt: skip
        taken = np.isfinite(labels)
        self.schedule.advance(0.0, accepted)
        touched = torch.unique(index if taken.all() else index[torch.from_numpy(taken)])
        return Learned(touched, int(taken.sum()), accepted, steps - accepted, torch.from_numpy(scores))

    def _rates(self, steps: int) -> NDArray[np.float32]:
        shares = self.schedule.shares(steps)
        rates: NDArray[np.float32] = (self.model.config.learning_rate * np.array(shares)).astype(np.float32)
        return rates

    def _weights(self) -> kernels.Weights:
        optimiser, nothing = self.optimiser, torch.zeros(0, 1)
        dense = [memory.numpy() for memory in (*optimiser.dense_memory, nothing[:, 0], nothing[:, 0])]
        table = [memory.numpy() for memory in (*optimiser.table_memory, nothing, nothing)]
        arrays = [optimiser.dense.numpy(), *dense[:2], optimiser.dense_steps.numpy()]
        arrays += [optimiser.table.numpy(), *table[:2], optimiser.table_steps.numpy()]
        return kernels.Weights(*arrays)

    def _statistics(self) -> kernels.Statistics:
        model = self.model
        buffers = (model.mean, model.var, model.count, model.seen, model.recent, model.fade)
        return kernels.Statistics(*(buffer.numpy() for buffer in buffers))


def _shape(model: Net, config: ModelConfig) -> kernels.Shape:
    numbers, recents, fields = len(model.mean), len(model.recent), len(model.offsets)
    embedding = model.table.shape[1] - 1
    hidden = () if config.family == "logistic" else config.hidden
    widths = np.array([numbers + recents + fields * embedding, *hidden], np.int64)
    crosses = CROSS_LAYERS if config.family == "dcn" else 0
    pairs = config.family == "deepfm"
    return kernels.Shape(widths, numbers, recents, embedding, crosses, pairs, _BESIDE[config.family])


def _scratch(shape: kernels.Shape, model: Net, config: ModelConfig) -> kernels.Scratch:
    def zeros(*size: int) -> NDArray[np.float32]:
        return np.zeros(size, np.float32)

    inputs, many = int(shape.widths[0]), config.batch_size * len(model.offsets)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return kernels.Scratch(
        gradient=zeros(parameters),
        row=zeros(int(shape.widths.sum())),
        back=zeros(int(shape.widths.sum())),
        crossed=zeros(shape.crosses + 1, inputs),
        inner=zeros(shape.crosses + 1, inputs),
        slope=zeros(inputs),
        slope_before=zeros(inputs),
        total=zeros(shape.embedding),
        place=np.full(len(model.table), -1, np.int32),
        rows=np.zeros(many, np.int64),
        row_gradient=zeros(many, model.table.shape[1]),
    )

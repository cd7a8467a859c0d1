"""Online EWC: after a drift, the weights that mattered for what came before it are held back.

Each alarm adds the Fisher information of the rows before the onset, its diagonal F, to that of earlier alarms, which
fades, and takes the weights w* of that moment as what to hold on to: `strength` / 2 times the sum of F (w - w*)² is
part of what is made smaller from then on (Kirkpatrick et al. 2017; with one anchor and a fading F in place of one for
each task: Schwarz et al. 2018, "Progress & compress").

Here that part acts by itself after each step, as the decay of AdamW does, and in closed form (a proximal step): it is
stable for every strength, and the same for every optimiser. A table row is pulled in the steps that touch it. F is
taken from mini-batches: n times the squared mean gradient of n rows, which in expectation is the mean of squares where
gradients average out.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from learners.batch import Batch
from learners.models.base import tensor
from learners.models.net import Net
from learners.optim import Optimiser

ROWS, PART = 2_048, 32  # newest rows before the onset, and how many make one gradient
FADE = 0.5  # what the information of earlier drifts is multiplied by at the next one


class Consolidation:
    """What one net holds on to. Until the first drift that is nothing."""

    def __init__(self, model: Net, optimiser: Optimiser, strength: float) -> None:
        self._model, self._optimiser, self._strength = model, optimiser, strength
        self.anchored = False
        dense, table = optimiser.dense, optimiser.table
        self._kept = {
            "dense": torch.zeros_like(dense), "table": torch.zeros_like(table),
            "fisher_dense": torch.zeros_like(dense), "fisher_table": torch.zeros_like(table),
        }  # fmt: skip

    def consolidate(self, before: Iterable[Batch]) -> None:
        """A drift: hold on to what the newest rows before its onset need, and to the weights as they are now.

        Without any row before it, nothing changes.
        """
        batches = [batch for batch in before if len(batch)]
        if not batches:
            return
        rows = Batch.concat(batches)
        self._weigh(rows.slice(max(len(rows) - ROWS, 0), len(rows)))
        self._kept["dense"].copy_(self._optimiser.dense.detach())
        self._kept["table"].copy_(self._optimiser.table)
        self.anchored = True

    def _weigh(self, before: Batch) -> None:
        """Add the Fisher information of some rows."""
        kept, model = self._kept, self._model
        for name in ("fisher_dense", "fisher_table"):
            kept[name] *= FADE
        numbers, index = model.inputs(before.numbers, before.categories)
        label, weight = tensor(before.label, index.device), tensor(before.weight, index.device)
        for start in range(0, len(before), PART):
            part = slice(start, start + PART)
            unique, inverse = torch.unique(index[part], return_inverse=True)
            rows = model.table.index_select(0, unique).requires_grad_()
            loss = model.objective(
                numbers[part], functional.embedding(inverse, rows), label[part], weight[part]
            )
            *dense, of_rows = torch.autograd.grad(loss, (*model.parameters(), rows))
            share = len(label[part]) ** 2 / len(label)
            kept["fisher_dense"] += share * torch.cat([each.flatten() for each in dense]).square()
            kept["fisher_table"].index_add_(0, unique, share * of_rows.square())

    @torch.no_grad()
    def after_step(self, touched: Tensor, rate: float) -> None:
        """A step was accepted at this learning rate, which touched these table rows [u]."""
        if not self.anchored:
            return
        optimiser, kept, factor = self._optimiser, self._kept, rate * self._strength
        pull = factor * kept["fisher_dense"]
        optimiser.dense.lerp_(kept["dense"], pull / (1.0 + pull))
        pull = factor * kept["fisher_table"][touched]
        rows = torch.lerp(optimiser.table[touched], kept["table"][touched], pull / (1.0 + pull))
        optimiser.table[touched] = rows

    def forget(self, rows: Tensor) -> None:
        """Table rows [u] stand for something else now: nothing holds them."""
        self._kept["fisher_table"][rows] = 0.0

    def state(self, touched: Tensor) -> dict[str, Tensor]:
        """By names that begin with "ewc.", everything, but of table rows those of `touched` [u] only.

        Empty before the first drift.
        """
        if not self.anchored:
            return {}
        kept = {name: value[touched] if "table" in name else value for name, value in self._kept.items()}
        return {f"ewc.{name}": value.cpu().clone() for name, value in kept.items()}

    def load(self, tensors: Mapping[str, Tensor], touched: Tensor) -> None:
        """The inverse of `state`, for one that holds on to nothing. KeyError if a part of it is not there."""
        if not any(name.startswith("ewc.") for name in tensors):
            return
        for name, value in self._kept.items():
            found = tensors[f"ewc.{name}"].to(value.device)
            if "table" in name:
                value[touched] = found
            else:
                value.copy_(found)
        self.anchored = True

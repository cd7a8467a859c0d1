"""Continual backpropagation: hidden units that say little are made new, a few at a time, so that a net never sets.

A net that learns one rule after another ends with units that are off for every row, or that nobody listens to, and
learns each new rule worse than the one before. Dohare et al. 2024 ("Loss of plasticity in deep continual learning",
algorithm 1) give back what the first weights had: of all units older than `MATURE` steps, a share of `rate` a step, the
least useful ones, get weights drawn anew, none of which says anything yet. The use of a unit is the running mean of
|its output| · Σ|weights that read it|.

Here the outputs are looked at every `EVERY` steps only, on the rows of that step: so it costs little, and is the same
for compiled steps. What the optimiser remembers of the weights that are new is cleared.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.models.net import Linear, Net, uniform_cells
from learners.optim import Optimiser

EVERY = 10  # steps between two looks at the units
KEPT = 0.9  # of the running mean of their use, at each look
MATURE = 50  # steps for which a new unit is left alone
SALT = 0x5EED  # its first weights are not those of the model


@dataclass(frozen=True)
class Hidden:
    """A hidden layer: its weights, what follows it (its activation), and the layer that reads its units last."""

    layer: Linear
    activation: nn.Module
    reader: Linear


class Renewal:
    """Looks after the hidden layers of one net. What it does is a function of the seed and the steps before."""

    def __init__(self, model: Net, optimiser: Optimiser, rate: float) -> None:
        self._model, self._optimiser, self._rate = model, optimiser, rate
        self._layers = hidden_layers(model)
        places = (parameter.numel() for parameter in model.parameters())
        starts = np.cumsum([0, *places]).tolist()
        self._starts = {id(p): start for p, start in zip(model.parameters(), starts, strict=False)}
        self._use = [torch.zeros(len(each.layer.bias)) for each in self._layers]
        self._age = [torch.zeros(len(each.layer.bias)) for each in self._layers]
        self._owed = torch.zeros(
            len(self._layers), dtype=torch.float64
        )  # units that are still to be made new
        self._steps = self.renewed = 0

    @torch.no_grad()
    def after_step(self, numbers: Tensor, index: Tensor) -> None:
        """A step was accepted, of `inputs` [n, N + extra] and table rows [n, F]: see to the units if it is time."""
        self._steps += 1
        if self._steps % EVERY:
            return
        for which, output in enumerate(self._outputs(numbers, index)):
            width = len(output)
            heard = self._layers[which].reader.weight[:, -width:].abs().sum(0)
            use, age = self._use[which], self._age[which]
            use.mul_(KEPT).add_((output * heard).cpu(), alpha=1.0 - KEPT)
            age += EVERY
            mature = age > MATURE
            self._owed[which] += self._rate * EVERY * float(mature.sum())
            due = min(int(self._owed[which]), int(mature.sum()))
            self._owed[which] -= due
            # Of a young unit the running mean has not come up yet.
            known = use / (1.0 - KEPT ** (age / EVERY))
            for unit in torch.where(mature, known, torch.inf).argsort(stable=True)[:due].tolist():
                self._renew(which, unit)

    def _outputs(self, numbers: Tensor, index: Tensor) -> list[Tensor]:
        """The mean absolute output of each unit [width], of each hidden layer, over some rows."""
        found: dict[int, Tensor] = {}

        def look(place: int) -> torch.utils.hooks.RemovableHandle:
            def hook(_: nn.Module, __: object, out: Tensor) -> None:
                found[place] = out.abs().mean(0)

            return self._layers[place].activation.register_forward_hook(hook)

        hooks = [look(place) for place in range(len(self._layers))]
        self._model.said(numbers, functional.embedding(index, self._model.table))
        for hook in hooks:
            hook.remove()
        return [found[place] for place in range(len(self._layers))]

    def _renew(self, which: int, unit: int) -> None:
        hidden, width = self._layers[which], len(self._age[which])
        inputs = hidden.layer.weight.shape[1]
        cells = np.arange(inputs, dtype=np.uint64) + np.uint64(self.renewed * inputs)
        drawn = torch.from_numpy(uniform_cells(self._model.seed + SALT, cells)) * 2.0 - 1.0
        told = hidden.reader.weight.shape[1] - width + unit
        for weight, at in (
            (hidden.layer.weight, np.s_[unit : unit + 1]),
            (hidden.layer.bias, np.s_[unit : unit + 1]),
            (hidden.reader.weight, np.s_[:, told : told + 1]),
        ):
            weight[at] = 0.0
            start = self._starts[id(weight)]
            for remembered in self._optimiser.dense_memory:
                remembered[start : start + weight.numel()].view_as(weight)[at] = 0.0
        hidden.layer.weight[unit] = (drawn * (3.0 / inputs) ** 0.5).to(hidden.layer.weight.device)
        self._use[which][unit] = self._age[which][unit] = 0.0
        self.renewed += 1

    def state(self) -> dict[str, Tensor]:
        """Everything, by names that begin with "renewal."."""
        kept = {"owed": self._owed, "counts": torch.tensor([self._steps, self.renewed])}
        kept |= {f"use.{i}": use for i, use in enumerate(self._use)}
        kept |= {f"age.{i}": age for i, age in enumerate(self._age)}
        return {f"renewal.{name}": value.clone() for name, value in kept.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, for a net of the same shape. KeyError if one is not there."""
        self._owed = tensors["renewal.owed"].clone()
        self._steps, self.renewed = tensors["renewal.counts"].tolist()
        self._use = [tensors[f"renewal.use.{i}"].clone() for i in range(len(self._layers))]
        self._age = [tensors[f"renewal.age.{i}"].clone() for i in range(len(self._layers))]


def hidden_layers(model: Net) -> list[Hidden]:
    """The hidden layers of a net's deep parts, each a `deep` with an `output` that reads it, from the inputs up."""
    found = []
    for part in model.modules():
        deep, output = getattr(part, "deep", None), getattr(part, "output", None)
        if not isinstance(deep, nn.Sequential) or not isinstance(output, Linear):
            continue
        layers = [layer for layer in deep if isinstance(layer, Linear)]
        activations = [layer for layer in deep if not isinstance(layer, Linear)]
        found += [Hidden(*each) for each in zip(layers, activations, [*layers[1:], output], strict=True)]
    return found

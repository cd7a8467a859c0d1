"""Nets over an entity's last events: recurrent ones (Elman, GRU, LSTM) and a small transformer.

The last values of an entity stand in a row newest first (`blocks`: series and codes). All of one entity make one
sequence: a step has a number and whether it is known for each series, and an embedding for each code. It is turned
round, so that the oldest event comes first, and has as many steps as its longest block has values: an entity that is
new has none and gets a vector of zeros.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.batch import Schema
from learners.blocks import Block
from learners.models.reader import Encoder, Reader, drawn

CELLS: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}
HEADS = 4
WIDER = 2  # the layer within a block of the transformer, in units


class SequenceNet(Reader):
    """A perceptron that also sees a vector for the last events of each entity that has some."""

    def encoders_of(self, schema: Schema) -> list[Encoder]:
        """See the base class."""
        blocks = schema.of_kind("series", "codes")
        entities = dict.fromkeys(block.entity for block in blocks)
        made = Attention if self.config.family == "transformer" else Recurrent
        return [made(self, [block for block in blocks if block.entity == entity]) for entity in entities]


class _Steps(Encoder):
    """What both encoders share: the steps of one entity, oldest first, and how many there are."""

    places: Tensor

    def __init__(self, net: Reader, blocks: list[Block]) -> None:
        super().__init__()
        numbers = net.schema.numbers
        self.series = [
            (block, numbers.index(f"{block.name}_last_1")) for block in blocks if block.kind == "series"
        ]
        self.codes = [block for block in blocks if block.kind == "codes"]
        self.length = max(block.length for block in blocks)
        self.inputs = 2 * len(self.series) + len(self.codes) * net.config.embedding
        self.width = net.config.units
        self.register_buffer("places", torch.arange(self.length), persistent=False)

    def steps(self, net: Reader, numbers: Tensor, scaled: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Steps [n, length, inputs], oldest first and zeros behind the newest; how many there are int64 [n]."""
        parts, masks = [], []
        for block, at in self.series:
            known = (~numbers[:, at : at + block.length].isnan()).float()
            parts += [self._padded(scaled[:, at : at + block.length, None])]
            parts += [self._padded(known[:, :, None])]
            masks.append(known)
        for block in self.codes:
            vectors, filled = net.ids_of(block, numbers, rows)
            parts.append(self._padded(vectors))
            masks.append(filled)
        # Values fill a block from its first place on, without gaps.
        count = torch.stack([mask.sum(1) for mask in masks]).amax(0).long()
        newest_first = torch.cat(parts, 2)
        turned = (count[:, None] - 1 - self.places).clamp_min(0)
        steps = newest_first.gather(1, turned[:, :, None].expand(-1, -1, self.inputs))
        return steps * (self.places < count[:, None])[:, :, None], count

    def _padded(self, part: Tensor) -> Tensor:
        """A part [n, k, d] of a shorter block with zeros behind it."""
        return functional.pad(part, (0, 0, 0, self.length - part.shape[1]))


class Recurrent(_Steps):
    """A recurrent net's state after the newest event. Sources: Elman 1990; GRU Cho et al. 2014; LSTM Hochreiter &
    Schmidhuber 1997.
    """

    def __init__(self, net: Reader, blocks: list[Block]) -> None:
        super().__init__(net, blocks)
        cell, config = CELLS[net.config.family], net.config
        made = partial(cell, self.inputs, config.units, config.layers, batch_first=True)
        self.cell: nn.RNNBase = drawn(net, made)

    def forward(self, net: Reader, numbers: Tensor, scaled: Tensor, rows: Tensor) -> Tensor:
        """See `reader.Encoder`."""
        steps, count = self.steps(net, numbers, scaled, rows)
        return last_state(self.cell, steps, count)


def last_state(cell: nn.RNNBase, steps: Tensor, count: Tensor) -> Tensor:
    """The state [n, units] of a recurrent layer after `count` [n] of its steps [n, k, d]; zeros for none."""
    # cuDNN wants weights in a memory layout of its own, and is not the same in every run.
    with torch.backends.cudnn.flags(enabled=False):
        states: Tensor = cell(steps)[0]
    newest = (count - 1).clamp_min(0)[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, newest).squeeze(1) * (count > 0)[:, None]


class Attention(_Steps):
    """A transformer (Vaswani et al. 2017) with normalisation first: what an extra step sees of the others.

    Positions are counted from the newest event, so that it is always the same one.
    """

    def __init__(self, net: Reader, blocks: list[Block]) -> None:
        super().__init__(net, blocks)
        units = net.config.units
        self.project = net.linear(self.inputs, units)
        self.position = nn.Parameter(torch.zeros(self.length + 1, units))
        with torch.no_grad():  # the last one stands for the extra step
            self.position.uniform_(-0.1, 0.1, generator=net.generator)
        self.layers = nn.ModuleList(_Layer(net, units) for _ in range(net.config.layers))
        self.norm = nn.LayerNorm(units)

    def forward(self, net: Reader, numbers: Tensor, scaled: Tensor, rows: Tensor) -> Tensor:
        """See `reader.Encoder`."""
        steps, count = self.steps(net, numbers, scaled, rows)
        age = (count[:, None] - 1 - self.places).clamp_min(0)
        state = self.project(steps) + self.position[age]
        state = torch.cat((state, self.position[self.length].expand(len(state), 1, -1)), 1)
        seen = torch.cat((self.places < count[:, None], torch.ones_like(count, dtype=torch.bool)[:, None]), 1)
        for layer in self.layers:
            state = layer(state, seen)
        vector: Tensor = self.norm(state[:, -1])
        return vector


class _Layer(nn.Module):
    """Attention of every step to all, then a net of two layers for each step by itself; both are added."""

    def __init__(self, net: Reader, units: int) -> None:
        super().__init__()
        self.heads = HEADS if units % HEADS == 0 else 1
        self.first, self.second = nn.LayerNorm(units), nn.LayerNorm(units)
        self.queries = net.linear(units, 3 * units)
        self.mix = net.linear(units, units)
        self.wide, self.narrow = net.linear(units, WIDER * units), net.linear(WIDER * units, units)

    def forward(self, state: Tensor, seen: Tensor) -> Tensor:
        """States [n, k, units]; `seen` bool [n, k] are the steps that can be looked at."""
        n, k, units = state.shape
        parts = self.queries(self.first(state)).view(n, k, 3, self.heads, units // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        looked = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
        state = state + self.mix(looked.transpose(1, 2).reshape(n, k, units))
        narrowed: Tensor = self.narrow(functional.gelu(self.wide(self.second(state))))
        return state + narrowed

"""Nets over the tokens of a text: a convolution (Kim 2014), and one over a recurrent net's states.

A text stands in a row as the ids of its tokens in their order, then zeros (`blocks`). What is read is the largest value
that each filter finds anywhere in the text; of an empty text it is 0.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.batch import Schema
from learners.blocks import Block
from learners.models.reader import Encoder, Reader, drawn

SPANS = (2, 3, 4)  # tokens that a filter of `text_cnn` sees
STATES = 3  # states that a filter of `text_rnn_cnn` sees


class TextNet(Reader):
    """A perceptron that also sees a vector for each text of a row."""

    def encoders_of(self, schema: Schema) -> list[Encoder]:
        """See the base class."""
        made = Convolution if self.config.family == "text_cnn" else RecurrentConvolution
        return [made(self, block) for block in schema.of_kind("text")]


class Convolution(Encoder):
    """Filters over two, three and four tokens, `units` of each (Kim 2014)."""

    def __init__(self, net: Reader, block: Block) -> None:
        super().__init__()
        units, size = net.config.units, net.config.embedding
        self.block, self.width = block, len(SPANS) * units
        self.filters = nn.ModuleList(drawn(net, partial(nn.Conv1d, size, units, span)) for span in SPANS)

    def forward(self, net: Reader, numbers: Tensor, scaled: Tensor, rows: Tensor) -> Tensor:
        """See `reader.Encoder`."""
        vectors, filled = net.ids_of(self.block, numbers, rows)
        found = [
            strongest(each, span, vectors, filled) for each, span in zip(self.filters, SPANS, strict=True)
        ]
        return torch.cat(found, 1)


class RecurrentConvolution(Encoder):
    """Filters over three states of a GRU that reads the tokens: each state knows the text so far."""

    def __init__(self, net: Reader, block: Block) -> None:
        super().__init__()
        units = self.width = net.config.units
        self.block = block
        self.cell = drawn(net, partial(nn.GRU, net.config.embedding, units, batch_first=True))
        self.filter = drawn(net, partial(nn.Conv1d, units, units, STATES))

    def forward(self, net: Reader, numbers: Tensor, scaled: Tensor, rows: Tensor) -> Tensor:
        """See `reader.Encoder`."""
        vectors, filled = net.ids_of(self.block, numbers, rows)
        with torch.backends.cudnn.flags(enabled=False):  # as in `sequence.last_state`
            states = self.cell(vectors)[0] * filled[:, :, None]
        return strongest(self.filter, STATES, states, filled)


def strongest(convolution: nn.Module, span: int, vectors: Tensor, filled: Tensor) -> Tensor:
    """The largest value [n, units] of each filter that begins at a place that is `filled` [n, k]; at least 0.

    `vectors` [n, k, d] are 0 where no token is.
    """
    found = functional.relu(convolution(functional.pad(vectors.transpose(1, 2), (0, span - 1))))
    strong: Tensor = (found * filled[:, None]).amax(2)
    return strong

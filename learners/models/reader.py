"""Nets that read blocks as they are: what a row says beside its numbers goes through an encoder of its own.

A `Reader` is a multilayer perceptron (as `factorization.Perceptron`) whose input has one vector more for each encoder:
sequences, texts and images differ only in the encoder.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from learners.batch import ModelConfig, Schema
from learners.blocks import Block
from learners.models.net import Net, deep_net


class Encoder(nn.Module):
    """Base of what makes one vector, `width` numbers, of a part of a row."""

    width: int

    def forward(self, net: "Reader", numbers: Tensor, scaled: Tensor, rows: Tensor) -> Tensor:
        """Vectors [n, width] of `inputs` [n, N + extra], scaled numbers [n, N] and table rows [n, F, width]."""
        raise NotImplementedError


class Reader(Net):
    """Numbers, embeddings of fields and the vectors of encoders, side by side into a deep net.

    A family gives `encoders_of`. Without a block that it could read it is a plain multilayer perceptron.
    """

    def __init__(self, schema: Schema, config: ModelConfig, seed: int) -> None:
        super().__init__(schema, config, seed, width=schema.target.width + config.embedding)
        encoders = self.encoders_of(schema)
        self.encoders = nn.ModuleList(encoders)
        inputs = len(schema.numbers) + len(schema.fields) * config.embedding
        inputs += sum(encoder.width for encoder in encoders)
        self.deep = deep_net(self, inputs, config.hidden)
        self.output = self.linear((config.hidden or (inputs,))[-1], self.outputs, zero=True)

    def encoders_of(self, schema: Schema) -> list[Encoder]:
        """The encoders of the schema's blocks."""
        raise NotImplementedError

    def said(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """See the base class."""
        scaled, fields = self.scale(numbers), self.fields(numbers, rows)
        vectors = [encoder(self, numbers, scaled, rows) for encoder in self.encoders]
        first = torch.cat((scaled, fields[:, :, self.outputs :].flatten(1), *vectors), 1)
        return self.flat(self.output(self.deep(first))) + self.wide(fields)

    def ids_of(self, block: Block, numbers: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [n, length, embedding] of a block of ids, 0 where a place is empty, and its mask [n, length]."""
        at: int = self.schema.columns(block.name).start
        filled = self.filled(numbers, at, block.length)
        return rows[:, at : at + block.length, self.outputs :] * filled[:, :, None], filled


Layer = TypeVar("Layer", bound=nn.Module)


def drawn(net: Net, make: Callable[[], Layer]) -> Layer:
    """A layer of torch's whose weights are drawn from the net's own seed; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):  # torch's own first weights are drawn and thrown away
        layer = make()
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            if name.startswith("bias"):
                weight.zero_()
            else:
                bound = weight[0].numel() ** -0.5
                weight.uniform_(-bound, bound, generator=net.generator)
    return layer

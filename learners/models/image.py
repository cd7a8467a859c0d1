"""A small convolutional net over the pixels of an image: two layers, each halved, then one over all of it."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.batch import Schema
from learners.blocks import PIXELS, Block
from learners.models.reader import Encoder, Reader, drawn


class ImageNet(Reader):
    """A perceptron that also sees a vector for each image of a row.

    The pixels come unpacked with the other inputs, behind the masks of ids: float32, from -1 to 1.
    """

    def encoders_of(self, schema: Schema) -> list[Encoder]:
        """See the base class."""
        at, made = -sum(block.length for block in schema.of_kind("image")), []
        for block in schema.of_kind("image"):
            made.append(Pixels(self, block, at))
            at += block.length
        return list(made)

    def extra(self, ids: Tensor) -> Tensor | None:
        """The masks of the base class, then the pixels of every image [n, …]."""
        parts = [super().extra(ids)]
        for block in self.schema.of_kind("image"):
            packed = ids[:, self.schema.columns(block.name)].flatten()
            pixels = packed.view(torch.uint8).view(len(ids), block.width * PIXELS)[:, : block.length]
            parts.append(pixels.float().mul_(2.0 / 255.0).sub_(1.0))
        known = [part for part in parts if part is not None]
        return torch.cat(known, 1) if known else None


class Pixels(Encoder):
    """Two convolutions (LeCun et al. 1998, with rectifiers and maxima) and a layer over what they find."""

    def __init__(self, net: Reader, block: Block, at: int) -> None:
        super().__init__()
        units = self.width = net.config.units
        self.block, self.at = block, at
        height, width, channels = block.shape
        half = max(1, units // 2)
        self.first = drawn(net, partial(nn.Conv2d, channels, half, 3, padding=1))
        self.second = drawn(net, partial(nn.Conv2d, half, units, 3, padding=1))
        self.output = net.linear(units * (height // 4) * (width // 4), units)

    def forward(self, net: Reader, numbers: Tensor, scaled: Tensor, rows: Tensor) -> Tensor:
        """See `reader.Encoder`."""
        start = numbers.shape[1] + self.at
        image = numbers[:, start : start + self.block.length].unflatten(1, self.block.shape).movedim(3, 1)
        for layer in (self.first, self.second):
            image = functional.max_pool2d(functional.relu(layer(image)), 2)
        return functional.relu(self.output(image.flatten(1)))

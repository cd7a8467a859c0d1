"""A model's weights as named tensors: what a refresh, a swap and a checkpoint carry, and the check before
they are used.

Names: every parameter and running statistic by its own name, whole; the table by `table.index` int64 [u]
(strictly rising row numbers) and `table.rows` float32 [u, width]. Rows that are not listed keep what they
have: their former value in a refresh, their first value (a function of the seed) in a whole model. A model with a
vocabulary has `table.ids` int64 [u] too, the id that each row stands for, 0 for none.
"""

import hashlib
import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.batch import ModelConfig, Schema
from learners.models import EventModel

INDEX, ROWS, IDS = "table.index", "table.rows", "table.ids"


@dataclass(frozen=True)
class Update:
    """What a trainer tells the serving side.

    `whole` is False for a refresh, which can only be applied to the weights of (`lineage`, `previous`) whose
    chain is `follows`. `chain` identifies the weights after it: a hash over all updates so far, so that two
    histories that number their refreshes alike (a learner that went back to an older checkpoint) are told
    apart.
    """

    whole: bool
    lineage: str
    previous: int
    refresh: int
    follows: str
    chain: str
    tensors: dict[str, Tensor]


def dense(model: EventModel) -> dict[str, Tensor]:
    """Parameters and running statistics by name (references, not copies)."""
    return {name: parameter.data for name, parameter in model.named_parameters()} | model.statistics()


def extract(model: EventModel, rows: Tensor) -> dict[str, Tensor]:
    """Copies on the CPU of everything dense, and of the table rows marked in the mask `rows` bool [R]."""
    index = rows.nonzero().squeeze(1)
    tensors = {name: value.detach().cpu().clone() for name, value in dense(model).items()}
    tensors |= {INDEX: index.cpu(), ROWS: model.table[index].cpu()}
    if model.vocabulary is not None:
        tensors[IDS] = torch.from_numpy(model.vocabulary.ids[tensors[INDEX].numpy()])
    return tensors


def names(model: EventModel) -> set[str]:
    """What `extract` gives."""
    return {*dense(model), INDEX, ROWS, *([] if model.vocabulary is None else [IDS])}


def problem(model: EventModel, tensors: dict[str, Tensor], most: float = math.inf) -> str | None:
    """Why `tensors` cannot be written into `model`, or None if they can: names, types, shapes, finiteness, a magnitude
    of up to `most` in what is no running statistic, row numbers, and what the family itself knows.
    """
    if set(tensors) != (wanted := names(model)):
        return f"has other tensors: {sorted(set(tensors) ^ wanted)}"
    index = tensors[INDEX]
    if index.dtype != torch.int64 or index.ndim != 1:
        return f"{INDEX} is {index.dtype} of shape {tuple(index.shape)}"
    statistics = model.statistics()
    shapes = {name: value.shape for name, value in dense(model).items()}
    shapes[ROWS] = torch.Size((len(index), model.table.shape[1]))
    for name, shape in shapes.items():
        value = tensors[name]
        if value.dtype != torch.float32 or value.shape != shape:
            return (
                f"{name} is {value.dtype} of shape {tuple(value.shape)}, the model has float32 {tuple(shape)}"
            )
        magnitude = largest(value)
        if not math.isfinite(magnitude):
            return f"{name} holds NaN or infinity"
        if magnitude > most and name not in statistics:
            return f"{name} holds a value beyond {most:g}"
    if len(index) and (index[0] < 0 or index[-1] >= len(model.table) or bool((index.diff() <= 0).any())):
        return f"{INDEX} is not a rising list of rows below {len(model.table)}"
    if model.vocabulary is not None:
        ids = tensors[IDS]
        if ids.dtype != torch.int64 or ids.shape != index.shape:
            return f"{IDS} is {ids.dtype} of shape {tuple(ids.shape)}"
        if reason := model.vocabulary.problem(index.numpy(), ids.numpy()):
            return f"{IDS}: {reason}"
    return model.problem(tensors)


def largest(value: Tensor) -> float:
    """The largest magnitude in a tensor, NaN if it holds one; without a copy of it."""
    if not value.numel():
        return 0.0
    low, high = torch.aminmax(value)
    return max(-float(low), float(high))


@torch.no_grad()
def write(model: EventModel, tensors: dict[str, Tensor]) -> None:
    """Writes tensors in which `problem` found none. In place: callers must not score at the same time."""
    for name, value in dense(model).items():
        value.copy_(tensors[name])
    model.table.index_copy_(0, tensors[INDEX].to(model.table.device), tensors[ROWS].to(model.table.device))
    if model.vocabulary is not None:
        model.vocabulary.write(tensors[INDEX].numpy(), tensors[IDS].numpy())


def first_chain(schema: Schema, config: ModelConfig, seed: int, lineage: str) -> str:
    """The chain of a model that has learned nothing: the same wherever the same model is built."""
    text = json.dumps([schema.hash, config.to_dict(), seed, lineage], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def next_chain(chain: str, tensors: dict[str, Tensor]) -> str:
    """The chain after `tensors` were written into the weights that `chain` identifies."""
    digest = hashlib.blake2b(chain.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()

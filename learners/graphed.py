"""The lesson of a net on a GPU: its passes and its dense update are CUDA graphs, captured once and replayed.

A step of a small net is some hundred tiny operations, and a GPU waits for the host between them. A graph starts all of
them with one call, but wants the same shapes in the same memory each time. So what depends on the data stays outside
and goes operation by operation: which table rows a step touches, their update, and whether it is finite, which is
looked at after the replays, when nothing has been written yet. A step then has two graphs, between which the gradient
of table rows is summed:

    passes   statistics, forward and backward pass of `batch_size` rows; one with weights of rows, one without
    update   the norm, the new dense vector and its memory

The passes of a step of fewer rows go operation by operation. All of it works without a GPU too, where a body is called
instead of replayed: so the tests check everything but the capture itself.
"""

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from learners.batch import ModelConfig
from learners.lesson import GradientLesson, Passed
from learners.models.net import Net
from learners.optim import Body

WARM_UP = (
    3  # runs before a capture, in which libraries set themselves up, as torch's own graphed callables have
)

log = logging.getLogger(__name__)


@cache
def tell(said: str) -> None:
    """Log something once in a process."""
    log.info("%s", said)


class Static:
    """Runs a body on tensors that lie where they lay in the call before; on a GPU as a CUDA graph.

    What a call is given is copied into these, and what it returns is overwritten by the next call. The body may read
    other tensors that keep their place; it writes none, never waits for the device, and is the same in every call.
    """

    def __init__(self) -> None:
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, body: Body, *given: Tensor) -> tuple[Tensor, ...]:
        """What the body makes of tensors of the shapes of the first call."""
        if not self._inputs:
            self._inputs = tuple(each.detach().clone() for each in given)
            if self._inputs[0].device.type == "cuda":
                self._capture(body)
        with torch.no_grad():
            for kept, each in zip(self._inputs, given, strict=True):
                kept.copy_(each)
        if self._graph is not None:
            self._graph.replay()
            return self._outputs
        found = body(*self._inputs)
        with torch.no_grad():
            self._outputs = self._outputs or tuple(each.clone() for each in found)
            for kept, each in zip(self._outputs, found, strict=True):
                kept.copy_(each)
        return self._outputs

    def _capture(self, body: Body) -> None:
        """Record what the body does. If that cannot be, there is no graph, and the body is called."""
        # The body is not kept, as it may hold this object: a graph that only the garbage collector frees could be
        # freed during a later capture, which that one does not survive.
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                body(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        try:
            # Other threads of a learner may use the device meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                outputs = body(*self._inputs)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            tell(f"a step could not be captured and goes operation by operation: {said}")
        else:
            self._graph, self._outputs = graph, outputs


class GraphedLesson(GradientLesson):
    """A `GradientLesson` with the same memory and arithmetic, whose steps of `batch_size` rows are replayed."""

    def __init__(self, model: Net, config: ModelConfig) -> None:
        super().__init__(model, config)
        self._rows = config.batch_size
        self._passes = {True: Static(), False: Static()}  # with weights, and without
        self.optimiser.runner = Static()

    def passed(
        self, numbers: Tensor, inverse: Tensor, rows: Tensor, label: Tensor, weight: Tensor | None
    ) -> Passed:
        """See the base class."""
        if len(label) != self._rows:
            tell("steps of fewer rows than batch_size are not captured")
            return super().passed(numbers, inverse, rows, label, weight)
        weights = () if weight is None else (weight,)
        found = functional.embedding(inverse, rows)
        run = self._passes[weight is not None]
        loss, dense, of_found, *statistics = run(self._body, numbers, found, label, *weights)
        # What autograd does with the gradient of an embedding.
        of_rows = torch.ops.aten.embedding_dense_backward(of_found, inverse, len(rows), -1, False)
        mean, var, count, seen, label_mean, label_var = statistics
        return loss, (dense, of_rows), (mean, var, count, seen, label_mean, label_var)

    def _body(
        self, numbers: Tensor, found: Tensor, label: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Loss, gradients of the dense vector [P] and of gathered table rows [n, F, width], and statistics."""
        former = self.model.observe(numbers, label, weight)
        try:
            rows = found.detach().requires_grad_()
            loss = self.objective(numbers, rows, label, weight)
            *dense, of_found = torch.autograd.grad(loss, (*self.model.parameters(), rows))
            flat = torch.cat([gradient.flatten() for gradient in dense])
        finally:  # also when a capture fails in its midst
            statistics = self.model.restore(former)
        return loss.detach(), flat, of_found, *statistics

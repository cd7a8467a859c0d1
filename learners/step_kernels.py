"""Test-then-train in steps of a few rows, compiled: score, gradient, clipping, update, with no call between them.

A step of one row costs torch about 400 µs, whatever the net; here it costs what its arithmetic does. The net is that of
`models.factorization` and `models.linear` (plain, cross layers or products of pairs), its weights are the same arrays,
and so is what a rule remembers: a step here and a step of `optim` differ in the order of sums only.

One row's numbers lie in one vector: the inputs (scaled numbers, recent labels, embeddings), then what each hidden
layer gives. The compiler may reorder sums; NaN and infinity keep their meaning.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# These are those of models.base, models.net and optim: a constant that is imported would not renew the cached code.
SCALED_LIMIT, LARGEST_LOGIT, LEAST_SPREAD, LEAST_SHARE = 6.0, 15.0, 1e-6, 1e-4
SCALER_ROWS, BASE_RATE_ROWS = 50_000.0, 5_000.0
SGD, ADAGRAD, ADAM, ADAMW = range(4)
NOTHING, NUMBERS, CROSSED = range(3)  # what the output layer sees besides the last hidden layer
LARGEST = np.finfo(np.float32).max
ZERO, ONE = np.float32(0.0), np.float32(1.0)


class Shape(NamedTuple):
    """`widths` int64 [L + 1] of the inputs and the hidden layers; how many `numbers` and `recents` begin the inputs;
    the width of an `embedding`; `crosses` cross layers; whether there are products of `pairs`; what is `beside` the
    last hidden layer before the output.
    """

    widths: Ints
    numbers: int
    recents: int
    embedding: int
    crosses: int
    pairs: bool
    beside: int


class Weights(NamedTuple):
    """`dense` [P] in the order of the model's parameters, `table` [R, width], and what the rule remembers of both:
    arrays of the same shape, or with no rows where it remembers less. `steps` [1] and `row_steps` [R, 1] count.
    """

    dense: Floats
    dense_first: Floats
    dense_second: Floats
    steps: Floats
    table: Floats
    table_first: Floats
    table_second: Floats
    row_steps: Floats


class Statistics(NamedTuple):
    """A model's running statistics: `mean`, `var` and count of `rows` [N] of its numbers, labels `seen` [2], `recent`
    [E] and the share of it, `fade` [E], that one label replaces.
    """

    mean: Floats
    var: Floats
    rows: Floats
    seen: Floats
    recent: Floats
    fade: Floats


class Settings(NamedTuple):
    """How a step is taken: the rule, the weight decay, the largest norm of a gradient, what a positive row counts."""

    rule: int
    weight_decay: float
    clip_norm: float
    positive_weight: float


class Scratch(NamedTuple):
    """What a step works in: `gradient` [P]; `row` and `back` [S], one row's numbers and the loss's slope in each;
    `crossed` and `inner` [K + 1, D] of the cross layers; `slope` and `slope_before` [D]; `place` [R], which of the
    step's rows a table row is, or -1; `rows` [m · C], the table rows of a step, and their gradient `row_gradient`.
    """

    gradient: Floats
    row: Floats
    back: Floats
    crossed: Floats
    inner: Floats
    slope: Floats
    slope_before: Floats
    total: Floats
    place: NDArray[np.int32]
    rows: Ints
    row_gradient: Floats


def kernel(function: Any) -> Any:
    """Compiles at the first call and keeps the machine code on disk, so that only the first process waits."""
    flags = {"reassoc", "contract", "nsz", "arcp"}
    return njit(cache=True, nogil=True, error_model="numpy", fastmath=flags)(function)


@kernel
def finite(x: float) -> bool:
    """Whether x is neither NaN nor infinite. math.isfinite asks for x - x, which reordering makes 0."""
    return bool(abs(x) <= LARGEST)


# Loops run over slices, from 0: to the compiler an index that is a sum could be negative, and it makes no vectors.
@kernel
def affine(layer: Floats, inputs: Floats, out: Floats) -> None:
    """Write W inputs [n] + b to `out` [m]; `layer` is W row by row, then b."""
    n, bias = inputs.shape[0], layer[layer.shape[0] - out.shape[0] :]
    for o in range(out.shape[0]):
        total, weights = ZERO, layer[o * n : o * n + n]
        for i in range(n):
            total += weights[i] * inputs[i]
        out[o] = total + bias[o]


@kernel
def affine_back(layer: Floats, gradient: Floats, inputs: Floats, slopes: Floats, back: Floats) -> None:
    """From the slopes [m] of a layer's outputs: add to its `gradient`, and to the slopes `back` [n] of its inputs."""
    n, bias = inputs.shape[0], gradient[gradient.shape[0] - slopes.shape[0] :]
    for o in range(slopes.shape[0]):
        slope = slopes[o]
        if slope == ZERO:
            continue
        weights, change = layer[o * n : o * n + n], gradient[o * n : o * n + n]
        for i in range(n):
            change[i] += slope * inputs[i]
            back[i] += slope * weights[i]
        bias[o] += slope


@kernel
def dot(first: Floats, second: Floats) -> float:
    """The sum of products of two vectors of one length."""
    total = ZERO
    for i in range(first.shape[0]):
        total += first[i] * second[i]
    return total  # type: ignore[return-value]


@kernel
def add(to: Floats, factor: float, values: Floats) -> None:
    """Add factor · values."""
    for i in range(to.shape[0]):
        to[i] += factor * values[i]


@kernel
def fill(shape: Shape, weights: Weights, seen: Statistics, values: Floats, index: Ints, row: Floats) -> None:
    """The inputs of one row: its compressed numbers [N] scaled, the recent labels, its embeddings."""
    for j in range(shape.numbers):
        spread = seen.var[j] + (np.float32(LEAST_SHARE) * seen.mean[j]) ** 2 + np.float32(LEAST_SPREAD**2)
        scaled = (values[j] - seen.mean[j]) / math.sqrt(spread)
        scaled = ZERO if math.isnan(scaled) else scaled
        row[j] = min(max(scaled, np.float32(-SCALED_LIMIT)), np.float32(SCALED_LIMIT))
    rate = (seen.seen[1] + ONE) / (seen.seen[0] + seen.seen[1] + ONE + ONE)
    deviation = math.sqrt(rate * (ONE - rate))
    for j in range(shape.recents):
        row[shape.numbers + j] = (seen.recent[j] - rate) / deviation
    at = shape.numbers + shape.recents
    for c in range(index.shape[0]):
        for e in range(shape.embedding):
            row[at + c * shape.embedding + e] = weights.table[index[c], 1 + e]


@kernel
def forward(shape: Shape, weights: Weights, index: Ints, scratch: Scratch) -> float:
    """The logit of the row in `scratch.row`, without the base rate; leaves there what `backward` needs."""
    dense, row, widths = weights.dense, scratch.row, shape.widths
    known, inputs = shape.numbers + shape.recents, widths[0]
    at = known * shape.embedding if shape.pairs else 0
    if shape.crosses:
        scratch.crossed[0, :] = row[:inputs]
    for k in range(shape.crosses):
        size = inputs * inputs + inputs
        before, inner, after = scratch.crossed[k], scratch.inner[k], scratch.crossed[k + 1]
        affine(dense[at : at + size], before, inner)
        for i in range(inputs):
            after[i] = before[i] + row[i] * inner[i]
        at += size
    begin = 0
    for layer in range(widths.shape[0] - 1):
        n, m = widths[layer], widths[layer + 1]
        out = row[begin + n : begin + n + m]
        affine(dense[at : at + m * n + m], row[begin : begin + n], out)
        for o in range(m):
            out[o] = max(out[o], ZERO)
        at, begin = at + m * n + m, begin + n
    beside = scratch.crossed[shape.crosses] if shape.beside == CROSSED else row[:known]
    many = 0 if shape.beside == NOTHING else beside.shape[0]
    logit = dense[dense.shape[0] - 1] + dot(dense[at : at + many], beside[:many])
    logit += dot(dense[at + many : dense.shape[0] - 1], row[begin : begin + widths[-1]])
    for c in range(index.shape[0]):
        logit += weights.table[index[c], 0]
    if shape.pairs:
        logit += np.float32(pairs(shape, dense, row, scratch.total))
    return float(logit)


@kernel
def pairs(shape: Shape, dense: Floats, row: Floats, total: Floats) -> float:
    """Half of ‖Σv‖² less Σ‖v‖² (Rendle 2010); leaves Σv in `total`. The directions begin `dense`."""
    known, width, own = shape.numbers + shape.recents, shape.embedding, ZERO
    total[:] = ZERO
    for j in range(known):
        for e in range(width):
            part = row[j] * dense[j * width + e]
            total[e] += part
            own += part * part
    for i in range(known, shape.widths[0]):
        total[(i - known) % width] += row[i]
        own += row[i] * row[i]
    return 0.5 * float(dot(total, total) - own)


@kernel
def backward(shape: Shape, weights: Weights, slope: float, scratch: Scratch) -> None:
    """Add the row's part to `scratch.gradient`, given the loss's slope in its logit; slopes of the inputs to `back`."""
    dense, gradient, row, back = weights.dense, scratch.gradient, scratch.row, scratch.back
    widths, known, inputs = shape.widths, shape.numbers + shape.recents, shape.widths[0]
    begin, at = np.sum(widths[:-1]), dense.shape[0] - 1 - widths[-1]
    back[:] = ZERO
    gradient[-1] += slope
    add(gradient[at : at + widths[-1]], slope, row[begin : begin + widths[-1]])
    add(back[begin : begin + widths[-1]], slope, dense[at : at + widths[-1]])
    if shape.beside == CROSSED:
        at -= inputs
        add(gradient[at : at + inputs], slope, scratch.crossed[shape.crosses])
        scratch.slope[:] = ZERO
        add(scratch.slope, slope, dense[at : at + inputs])
    elif shape.beside == NUMBERS:
        at -= known
        add(gradient[at : at + known], slope, row[:known])
    for layer in range(widths.shape[0] - 2, -1, -1):
        n, m = widths[layer], widths[layer + 1]
        slopes, out = back[begin : begin + m], row[begin : begin + m]
        for o in range(m):
            slopes[o] = slopes[o] if out[o] > ZERO else ZERO
        size, begin = m * n + m, begin - n
        at -= size
        before, to = row[begin : begin + n], back[begin : begin + n]
        affine_back(dense[at : at + size], gradient[at : at + size], before, slopes, to)
    for k in range(shape.crosses - 1, -1, -1):
        size = inputs * inputs + inputs
        at -= size
        cross_back(dense[at : at + size], gradient[at : at + size], k, scratch)
    if shape.crosses:
        add(back[:inputs], ONE, scratch.slope)
    if shape.pairs:
        pairs_back(shape, dense, slope, scratch)


@kernel
def cross_back(layer: Floats, gradient: Floats, k: int, scratch: Scratch) -> None:
    """Through cross layer k: `scratch.slope` is that of its output before, and of its input after."""
    row, slope, before, inner = scratch.row, scratch.slope, scratch.slope_before, scratch.inner[k]
    for i in range(slope.shape[0]):
        scratch.back[i] += slope[i] * inner[i]
        before[i] = slope[i] * row[i]
    affine_back(layer, gradient, scratch.crossed[k], before, slope)


@kernel
def pairs_back(shape: Shape, dense: Floats, slope: float, scratch: Scratch) -> None:
    """Through the products of pairs, whose Σv is in `scratch.total`."""
    row, total, width, known = scratch.row, scratch.total, shape.embedding, shape.numbers + shape.recents
    for j in range(known):
        for e in range(width):
            rest = total[e] - row[j] * dense[j * width + e]
            scratch.gradient[j * width + e] += slope * row[j] * rest
    for i in range(known, shape.widths[0]):
        scratch.back[i] += slope * (total[(i - known) % width] - row[i])


@kernel
def collect(shape: Shape, index: Ints, slope: float, used: int, scratch: Scratch) -> int:
    """Add the slopes of one row's embeddings to its table rows' gradients; how many rows the step has by now."""
    at = shape.numbers + shape.recents
    for c in range(index.shape[0]):
        place = scratch.place[index[c]]
        if place < 0:
            place, used = used, used + 1
            scratch.place[index[c]], scratch.rows[place] = place, index[c]
            scratch.row_gradient[place, :] = ZERO
        scratch.row_gradient[place, 0] += slope
        for e in range(shape.embedding):
            scratch.row_gradient[place, 1 + e] += scratch.back[at + c * shape.embedding + e]
    return used


@kernel
def move(
    settings: Settings, values: Floats, gradient: Floats, shrink: float, first: Floats, second: Floats,
    steps: float, rate: float,
) -> None:  # fmt: skip
    """One step of the rule on values [w] in place, and on what it remembers of them; see `optim` for the sources."""
    rule, decay = settings.rule, np.float32(settings.weight_decay)
    pull = decay if rule != ADAMW else ZERO
    keep = ONE - np.float32(rate) * decay if rule == ADAMW else ONE
    n, step = values.shape[0], np.float32(rate)
    if rule == SGD:
        for i in range(n):
            values[i] -= step * (gradient[i] * shrink + pull * values[i])
    elif rule == ADAGRAD:
        for i in range(n):
            slope = gradient[i] * shrink + pull * values[i]
            first[i] += slope * slope
            values[i] -= step * slope / (math.sqrt(first[i]) + np.float32(1e-10))
    else:
        step *= np.float32(math.sqrt(1.0 - 0.999**steps) / (1.0 - 0.9**steps))
        for i in range(n):
            slope = gradient[i] * shrink + pull * values[i]
            first[i] += np.float32(0.1) * (slope - first[i])
            second[i] = np.float32(0.999) * second[i] + np.float32(0.001) * slope * slope
            values[i] = keep * values[i] - step * first[i] / (math.sqrt(second[i]) + np.float32(1e-8))


@kernel
def accept(
    settings: Settings, weights: Weights, scratch: Scratch, used: int, shrink: float, rate: float
) -> None:
    """Write a step that was found finite: everything dense, and the `used` table rows it touched."""
    weights.steps[0] += ONE
    first, second, steps = weights.dense_first, weights.dense_second, float(weights.steps[0])
    move(settings, weights.dense, scratch.gradient, shrink, first, second, steps, rate)
    for place in range(used):
        row = scratch.rows[place]
        weights.row_steps[row, 0] += ONE
        many = weights.table_first.shape[0], weights.table_second.shape[0]
        first = weights.table_first[row] if many[0] else weights.table_first.reshape(-1)
        second = weights.table_second[row] if many[1] else weights.table_second.reshape(-1)
        steps = float(weights.row_steps[row, 0])
        move(settings, weights.table[row], scratch.row_gradient[place], shrink, first, second, steps, rate)


@kernel
def observe(seen: Statistics, values: Floats, label: float, weight: float) -> None:
    """Fold one row's compressed numbers [N] and its label into the running statistics."""
    for j in range(values.shape[0]):
        if not finite(values[j]):
            continue
        share = ONE / (seen.rows[j] + ONE)
        gap = values[j] - seen.mean[j]
        before = seen.var[j] if seen.rows[j] > ZERO else ZERO
        seen.var[j] = (ONE - share) * (before + share * gap * gap)
        seen.mean[j] += gap * share
        seen.rows[j] = min(seen.rows[j] + ONE, np.float32(SCALER_ROWS))
    if seen.seen[0] + seen.seen[1] < np.float32(BASE_RATE_ROWS):
        seen.seen[0] += weight * (ONE - label)
        seen.seen[1] += weight * label
    for j in range(seen.recent.shape[0]):
        seen.recent[j] += seen.fade[j] * (label - seen.recent[j])


@kernel
def learn(
    shape: Shape, settings: Settings, weights: Weights, seen: Statistics, scratch: Scratch,
    values: Floats, index: Ints, label: Floats, weight: Floats, rates: Floats, batch: int, scores: Floats,
) -> int:  # fmt: skip
    """Test, then train: rows in steps of `batch`, the k-th accepted at learning rate `rates[k]`.

    Writes the probabilities `scores` [n], each by the weights before the row's step, and returns how many steps were
    accepted. A step whose loss or gradient is not finite changes nothing: labels [n] of its rows become NaN. With a
    finite gradient, which is clipped, no rule here can give a weight that is not finite.
    """
    accepted, largest, clip = 0, np.float32(LARGEST_LOGIT), np.float32(settings.clip_norm)
    for start in range(0, label.shape[0], batch):
        stop, used, total = min(start + batch, label.shape[0]), 0, ZERO
        scratch.gradient[:] = ZERO
        base = np.float32(math.log((seen.seen[1] + ONE) / (seen.seen[0] + ONE)))
        for i in range(start, stop):
            fill(shape, weights, seen, values[i], index[i], scratch.row)
            logit = np.float32(forward(shape, weights, index[i], scratch) + base)
            scores[i] = ONE / (ONE + math.exp(-min(max(logit, -largest), largest)))
            cost = weight[i] * (ONE + (np.float32(settings.positive_weight) - ONE) * label[i])
            slope = cost * (ONE / (ONE + math.exp(-logit)) - label[i]) / np.float32(stop - start)
            total += slope
            backward(shape, weights, slope, scratch)
            used = collect(shape, index[i], slope, used, scratch)
        squares = dot(scratch.gradient, scratch.gradient)
        for place in range(used):
            scratch.place[scratch.rows[place]] = -1
            squares += dot(scratch.row_gradient[place], scratch.row_gradient[place])
        if not finite(squares + total):
            label[start:stop] = np.float32(math.nan)
            continue
        shrink = min(clip / (np.float32(math.sqrt(squares)) + np.float32(1e-12)), ONE)
        accept(settings, weights, scratch, used, shrink, float(rates[accepted]))
        for i in range(start, stop):
            observe(seen, values[i], label[i], weight[i])
        accepted += 1
    return accepted

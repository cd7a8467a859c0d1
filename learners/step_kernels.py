"""Test-then-train in steps of a few rows, compiled: score, gradient, clipping, update, with no call between them.

A step of one row costs torch about 400 µs, whatever the net; here it costs what its arithmetic does. The net is that of
`models.factorization` and `models.linear` (plain, cross layers or products of pairs), its weights are the same arrays,
and so is what a rule remembers: a step here and a step of `optim` differ in the order of sums only.

One row's numbers lie in one vector: the inputs (scaled numbers, recent labels, embeddings), then what each hidden
layer gives. Sums may be reordered by the compiler, but NaN and infinity keep their meaning.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# These are those of models.base, models.net and optim: a constant that is imported would not renew the cached code.
SCALED_LIMIT, SMALLEST_VARIANCE, LARGEST_LOGIT = 6.0, 1e-4, 15.0
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


@kernel
def affine(dense: Floats, at: int, inputs: Floats, begin: int, n: int, out: Floats, to: int, m: int) -> None:
    """out[to : to + m] = W inputs[begin : begin + n] + b, of the layer whose weights begin at `at`."""
    for o in range(m):
        total, base = ZERO, at + o * n
        for i in range(n):
            total += dense[base + i] * inputs[begin + i]
        out[to + o] = total + dense[at + m * n + o]


@kernel
def affine_back(
    dense: Floats, gradient: Floats, at: int, n: int, m: int,
    inputs: Floats, begin: int, slopes: Floats, of: int, back: Floats, to: int,
) -> None:  # fmt: skip
    """Add a layer's part to `gradient`, and what its inputs [n] get to back[to : to + n], from slopes[of : of + m]."""
    for o in range(m):
        slope, base = slopes[of + o], at + o * n
        if slope == ZERO:
            continue
        for i in range(n):
            gradient[base + i] += slope * inputs[begin + i]
        for i in range(n):
            back[to + i] += slope * dense[base + i]
        gradient[at + m * n + o] += slope


@kernel
def fill(shape: Shape, weights: Weights, seen: Statistics, values: Floats, index: Ints, row: Floats) -> None:
    """The inputs of one row: its compressed numbers [N] scaled, the recent labels, its embeddings."""
    for j in range(shape.numbers):
        scaled = (values[j] - seen.mean[j]) / math.sqrt(seen.var[j] + np.float32(SMALLEST_VARIANCE))
        scaled = ZERO if math.isnan(scaled) else scaled
        row[j] = min(max(scaled, np.float32(-SCALED_LIMIT)), np.float32(SCALED_LIMIT))
    rate = (seen.seen[1] + ONE) / (seen.seen[0] + seen.seen[1] + ONE + ONE)
    spread = math.sqrt(rate * (ONE - rate))
    for j in range(shape.recents):
        row[shape.numbers + j] = (seen.recent[j] - rate) / spread
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
    for i in range(inputs if shape.crosses else 0):
        scratch.crossed[0, i] = row[i]
    for k in range(shape.crosses):
        affine(dense, at, scratch.crossed[k], 0, inputs, scratch.inner[k], 0, inputs)
        for i in range(inputs):
            scratch.crossed[k + 1, i] = scratch.crossed[k, i] + row[i] * scratch.inner[k, i]
        at += inputs * inputs + inputs
    begin = 0
    for layer in range(widths.shape[0] - 1):
        n, m = widths[layer], widths[layer + 1]
        affine(dense, at, row, begin, n, row, begin + n, m)
        for o in range(begin + n, begin + n + m):
            row[o] = max(row[o], ZERO)
        at, begin = at + m * n + m, begin + n
    logit = ZERO
    beside = scratch.crossed[shape.crosses] if shape.beside == CROSSED else row
    many = inputs if shape.beside == CROSSED else known if shape.beside == NUMBERS else 0
    for i in range(many):
        logit += dense[at + i] * beside[i]
    at += many
    for i in range(widths[-1]):
        logit += dense[at + i] * row[begin + i]
    logit += dense[at + widths[-1]]
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
    squares = ZERO
    for e in range(width):
        squares += total[e] * total[e]
    return 0.5 * float(squares - own)


@kernel
def backward(shape: Shape, weights: Weights, slope: float, scratch: Scratch) -> None:
    """Add the row's part to `scratch.gradient`, given the loss's slope in its logit; slopes of the inputs to `back`."""
    dense, gradient, row, back = weights.dense, scratch.gradient, scratch.row, scratch.back
    widths, known, inputs = shape.widths, shape.numbers + shape.recents, shape.widths[0]
    begin, at = 0, dense.shape[0] - 1 - widths[-1]
    for layer in range(widths.shape[0] - 1):
        begin += widths[layer]
    back[:] = ZERO
    gradient[-1] += slope
    for i in range(widths[-1]):
        gradient[at + i] += slope * row[begin + i]
        back[begin + i] = slope * dense[at + i]
    if shape.beside == CROSSED:
        at -= inputs
        for i in range(inputs):
            gradient[at + i] += slope * scratch.crossed[shape.crosses, i]
            scratch.slope[i] = slope * dense[at + i]
    elif shape.beside == NUMBERS:
        at -= known
        for i in range(known):
            gradient[at + i] += slope * row[i]
    for layer in range(widths.shape[0] - 2, -1, -1):
        n, m = widths[layer], widths[layer + 1]
        for o in range(begin, begin + m):
            back[o] = back[o] if row[o] > ZERO else ZERO
        at, begin = at - m * n - m, begin - n
        affine_back(dense, gradient, at, n, m, row, begin, back, begin + n, back, begin)
    for k in range(shape.crosses - 1, -1, -1):
        at -= inputs * inputs + inputs
        cross_back(dense, gradient, at, k, scratch)
    for i in range(inputs if shape.crosses else 0):
        back[i] += scratch.slope[i]
    if shape.pairs:
        pairs_back(shape, dense, slope, scratch)


@kernel
def cross_back(dense: Floats, gradient: Floats, at: int, k: int, scratch: Scratch) -> None:
    """Through cross layer k: `scratch.slope` is that of its output before, and of its input after."""
    row, slope, inner = scratch.row, scratch.slope, scratch.slope_before
    inputs = slope.shape[0]
    for i in range(inputs):
        scratch.back[i] += slope[i] * scratch.inner[k, i]
        inner[i] = slope[i] * row[i]
    affine_back(dense, gradient, at, inputs, inputs, scratch.crossed[k], 0, inner, 0, slope, 0)


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
    move(
        settings, weights.dense, scratch.gradient, shrink, weights.dense_first, weights.dense_second,
        float(weights.steps[0]), rate,
    )  # fmt: skip
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
    accepted = 0
    for start in range(0, label.shape[0], batch):
        stop, used, total = min(start + batch, label.shape[0]), 0, ZERO
        scratch.gradient[:] = ZERO
        base = np.float32(math.log((seen.seen[1] + ONE) / (seen.seen[0] + ONE)))
        for i in range(start, stop):
            fill(shape, weights, seen, values[i], index[i], scratch.row)
            logit = np.float32(forward(shape, weights, index[i], scratch) + base)
            scores[i] = ONE / (
                ONE + math.exp(-min(max(logit, np.float32(-LARGEST_LOGIT)), np.float32(LARGEST_LOGIT)))
            )
            cost = weight[i] * (ONE + (np.float32(settings.positive_weight) - ONE) * label[i])
            slope = cost * (ONE / (ONE + math.exp(-logit)) - label[i]) / np.float32(stop - start)
            total += slope
            backward(shape, weights, slope, scratch)
            used = collect(shape, index[i], slope, used, scratch)
        squares = ZERO
        for i in range(scratch.gradient.shape[0]):
            squares += scratch.gradient[i] * scratch.gradient[i]
        for place in range(used):
            scratch.place[scratch.rows[place]] = -1
            for e in range(scratch.row_gradient.shape[1]):
                squares += scratch.row_gradient[place, e] * scratch.row_gradient[place, e]
        if not finite(squares + total):
            label[start:stop] = np.float32(math.nan)
            continue
        shrink = min(
            np.float32(settings.clip_norm) / (np.float32(math.sqrt(squares)) + np.float32(1e-12)), ONE
        )
        accept(settings, weights, scratch, used, shrink, float(rates[accepted]))
        for i in range(start, stop):
            observe(seen, values[i], label[i], weight[i])
        accepted += 1
    return accepted

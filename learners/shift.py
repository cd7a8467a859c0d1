"""Drift in what goes in and what comes out: every column, the score, and how columns relate, against the recent past.

Every eighth of a window is a block. A block gives each column some statistics (`STATISTICS`), and how strange they are
among those of the blocks before is evidence (`learners.evidence`); an alarm also needs that the newest window moved by
as much as counts (`learners.moved`).
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from learners.batch import Batch, Schema
from learners.drift import Alert, DriftConfig
from learners.evidence import RankEvidence
from learners.joint import FEWEST_ROWS, JointWatch
from learners.moved import Sides, affected, related
from learners.packing import part, prefixed
from learners.psi import Bins, psi_noise
from learners.watched import SeenValues, Watched

BLOCKS = 8  # of a window
REFERENCE = 8 * BLOCKS  # blocks that make a reference
SMALLEST_REFERENCE = 4 * BLOCKS  # blocks that will do after the start or an alert
REFRESH = 4 * BLOCKS  # the reference is made anew from the blocks before the newest window after this many
HABIT = 32  # windows that say what is usual for a column
SMALLEST_HABIT = 8  # no alarm before this many
NEVER = 2**62  # the block in which a column has its first value, if it has none
LESSON = 2  # alarms after which a column that alarms again and again must move further than before
FADE = 0.5 ** (1 / (500 * BLOCKS))  # a lesson is worth half after 500 windows
OFF = 2.0  # a threshold that no change of correlations is to pass: they are not watched
LEAP = 2  # a model that has learned more than so many times what it had a window ago is another one
LEAST = 0.02  # change of the share of missing values, and share of new ones, that a column must pass
STATISTICS = ("psi", "missing", "new_values", "joint")
JOINT = STATISTICS.index("joint")
SHARE = 2.0  # all of this has half of the budget of false alarms; calibration has the other half

Floats = NDArray[np.float64]


class ShiftDetector:
    """Compares what comes with the recent past; one shift gives one alert.

    Four statistics: the population stability index of each column and of the score; the change of the share of
    missing values of each column; of each category, the share of values that were never seen before the newest
    window; and of all inputs together, the change of their correlations (`learners.joint`), unless there is one input
    only, or a block has too few rows for it. An alarm needs both, of one statistic:

    * evidence: R of its ranks reaches the budget times the number of statistics. Without a change, while blocks are
      exchangeable, that happens at most once in `false_alarms_per` examples on average, over all columns, calibration
      included;
    * effect: in the newest window it passes a threshold + habit. The threshold of PSI is `psi_threshold` + the noise
      that any of the columns passes by chance with probability `delta`; of correlations `joint_threshold`; of the
      others, `LEAST`. The habit is twice the 90 % quantile of what it was in the last `HABIT` windows: a column that
      follows the time of day or still fills up after a cold start moves all the time, and only a move that is large
      for it is news.

    The reference follows the stream (it is made of `REFERENCE` blocks every `REFRESH` blocks), so slow growth is never
    a shift; a slow drift that hurts is left to the loss detector. An alert empties the reference, since what comes next
    is the new normal.

    No alarm is possible in the first 12 windows, nor in the 5 windows after an alert. A column that gets its first
    values later, such as a rate of labels, which nobody knows in the first days, is watched once all of the reference
    came after them: that it begins is no shift. A large shift is seen within about a window, a smaller one within two.

    Scores move too when a model has leapt: a young one that served for long as it was, while nothing reached it, and
    then has learned many times as much (`LEAP`). That is no drift. From there on the score begins anew, as a column
    that gets its first values then; inputs are watched on. A model that has learned for long cannot leap.
    """

    def __init__(self, schema: Schema, config: DriftConfig) -> None:
        self._config = config
        self._block = math.ceil(config.window / BLOCKS)
        self._numbers = [i for i, name in enumerate(schema.numbers) if name not in config.ignore]
        self._categories = [i for i, name in enumerate(schema.categories) if name not in config.ignore]
        self._score_at = len(self._numbers)
        self.columns = [*(schema.numbers[i] for i in self._numbers), "score"]
        self.columns += [schema.categories[i] for i in self._categories]
        count, kinds = len(self.columns), len(self._categories)
        joint = count > 2 and self._block >= FEWEST_ROWS and config.joint_threshold < OFF
        # The column of each statistic (of `joint` none, which is -1), and which statistic it is.
        self._of = np.concatenate([np.arange(count)] * 2 + [np.arange(count - kinds, count), [-1] * joint])
        self._of = self._of.astype(np.int64)
        self._kind = np.repeat(np.arange(len(STATISTICS)), [count, count, kinds, int(joint)])
        self._joint = JointWatch(count - 1, config.delta) if joint else None
        self._inputs = [name for i, name in enumerate(self.columns) if i != self._score_at]
        self._pending = Watched.none(len(self._numbers) + 1, kinds)  # the block that is not yet full
        self._blocks: list[Watched] = []  # the full ones since the reference was emptied, newest last
        self._reference: Bins | None = None
        self._shares = np.zeros(0)  # of the reference
        self._made_of = 0  # blocks the reference was made of ...
        self._age = 0  # ... and full blocks since its last one
        # Of the newest blocks: what the reference makes of them [bins], and their shares of new values [categories].
        self._histograms: deque[Floats] = deque(maxlen=BLOCKS)
        self._new: deque[Floats] = deque(maxlen=BLOCKS)
        self._base = np.zeros(len(self._of))  # thresholds without the habit
        self._evidence, self._seen_values = RankEvidence(len(self._of)), SeenValues(kinds)
        self._habit: deque[Floats] = deque(maxlen=HABIT + 1)
        self._newest = np.zeros(0)  # PSI of the newest whole window
        self._first = np.full(count, NEVER, np.int64)  # the block in which a column had its first value ...
        self._able = np.zeros(len(self._of), np.bool_)  # ... and whether all of the reference came after it
        self._alarms = np.zeros(len(self._of), np.int64)  # of each statistic so far ...
        self._largest = np.zeros(len(self._of))  # ... and the largest effect among them, faded
        self._learned: deque[int] = deque(maxlen=BLOCKS)  # examples that the model of each block had learned
        self._counted = self._seen = self._quiet_until = 0  # blocks; rows; rows until which it is silent

    def psi(self) -> dict[str, float]:
        """PSI of each watched column in the newest full window that was compared; empty before the first."""
        found = zip(self.columns, self._newest.tolist(), strict=True) if len(self._newest) else ()
        return {name: value for name, value in found if math.isfinite(value)}

    def update(
        self, batch: Batch, scores: NDArray[np.floating[Any]], version: str, learned: int = 0
    ) -> list[Alert]:
        """Feed a batch and its scores [n]. `version` is the live model's, for the alert.

        `learned` is from how many examples it had learned; 0 where scores never wait for a refresh, and cannot leap.
        """
        numbers = np.concatenate(
            [batch.numbers[:, self._numbers], np.asarray(scores, np.float32)[:, None]], axis=1
        )
        categories = batch.categories[:, self._categories]
        rows = Watched(numbers, categories, np.array(batch.event_ids, np.str_), batch.event_ms)
        pending = Watched.concat([self._pending, rows]) if len(self._pending) else rows
        alerts: list[Alert] = []
        full = len(pending) // self._block * self._block
        for start in range(0, full, self._block):
            alerts += self._full_block(pending.slice(start, start + self._block), version, learned)
        self._pending = pending.slice(full, len(pending))
        return alerts

    def swapped(self) -> None:
        """Another model gives the scores from now on: what was normal, and what is usual, begins anew."""
        self._rebase()
        self._forget_score()

    def _forget_score(self) -> None:
        """Forget what was usual for the score."""
        self._learned.clear()
        for statistic in np.flatnonzero(self._of == self._score_at).tolist():
            self._evidence.forget(statistic)
            for window in self._habit:
                window[statistic] = np.nan

    def _follow(self, learned: int) -> None:
        """The newest block's model had learned so many examples: after a leap the score begins anew."""
        if learned > LEAP * min(self._learned, default=learned):
            self._forget_score()
            if self._reference is not None:  # one that is made later has the new scores too
                self._first[self._score_at] = self._counted + 1  # the newest block may have old ones as well
                self._able[self._of == self._score_at] = False
        self._learned.append(learned)

    @property
    def seen(self) -> int:
        """Rows of all full blocks so far."""
        return self._seen

    def alarmed(self, seen: int) -> None:
        """It alarmed after `seen` rows, which this one did not all see: go on as after an alarm."""
        self._seen, self._quiet_until = seen, seen + self._config.cooldown
        self._pending = self._pending.slice(0, 0)
        self._rebase()

    def _rebase(self) -> None:
        """Forget what was normal."""
        for block in self._blocks[-BLOCKS:]:
            self._seen_values.add(block.categories)
        self._blocks, self._reference = [], None
        if self._joint is not None:
            self._joint.keep(0)
        self._made_of = self._age = 0
        self._histograms.clear()
        self._evidence.restart()

    def _full_block(self, block: Watched, version: str, learned: int) -> list[Alert]:
        """Compare, maybe alert, then let the block become part of the past."""
        self._seen += len(block)
        self._counted += 1
        self._largest *= FADE
        self._first[block.known() & (self._first == NEVER)] = self._counted
        self._follow(learned)
        self._blocks.append(block)
        if self._joint is not None:
            self._joint.add(block)
        self._new.append(self._seen_values.unseen(block.categories).mean(axis=0))
        self._age += 1
        if (reference := self._reference) is not None:
            self._histograms.append(reference.histogram(reference.codes(block.numbers, block.categories)))
            strange = [self._joint.strangeness(min(self._age - 1, BLOCKS))] if self._joint is not None else []
            self._evidence.update(self._statistics(reference, self._histograms[-1], self._new[-1], strange))
            if len(self._histograms) == BLOCKS:
                joint = [self._joint.effect(BLOCKS)] if self._joint is not None else []
                effects = self._statistics(
                    reference, np.sum(self._histograms, axis=0), np.mean(self._new, axis=0), joint
                )
                alerts = self._judge(reference, effects, version)
                if alerts:
                    self._rebase()  # the window may be half of each regime, so it is neither's reference
                    return alerts
                if self._counted % BLOCKS == 0:
                    self._newest = effects[self._kind == 0]
                    self._habit.append(effects)
        self._remember()
        return []

    def _statistics(self, reference: Bins, histogram: Floats, new: Floats, joint: Sequence[float]) -> Floats:
        """The statistics [statistics] of one block or of the window: its histogram [bins], shares of new values."""
        now = reference.shares(histogram)
        missing = np.abs(now[reference.missing] - self._shares[reference.missing])
        found = np.concatenate([reference.psi(now, self._shares), missing, new, joint])
        return np.where(self._able, found, np.nan)

    def _remember(self) -> None:
        """Make the reference anew when it is time; values become known when they have left the newest window."""
        if len(self._blocks) > BLOCKS:
            self._seen_values.add(self._blocks[-BLOCKS - 1].categories)
        if self._reference is None and len(self._blocks) == SMALLEST_REFERENCE:
            self._made_of, self._age = SMALLEST_REFERENCE, 0
            self._make_reference()
        elif self._reference is not None and self._age == BLOCKS + REFRESH:
            self._made_of, self._age = min(len(self._blocks) - BLOCKS, REFERENCE), BLOCKS
            self._make_reference()
        self._blocks = self._blocks[-(REFERENCE + REFRESH + BLOCKS) :]
        if self._joint is not None:
            self._joint.keep(len(self._blocks))

    def _make_reference(self) -> None:
        """From the `made_of` blocks that end `age` blocks ago, so that `load` can make the same one."""
        self._reference = None
        self._histograms.clear()
        if not self._made_of:
            return
        end = len(self._blocks) - self._age
        rows = Watched.concat(self._blocks[end - self._made_of : end])
        able = self._first <= self._counted - self._age - self._made_of + 1
        self._able = able[self._of] | (self._kind == JOINT)
        if self._joint is not None:
            self._joint.refer(end - self._made_of, end, np.delete(able, self._score_at))
        made = self._reference = Bins(rows.numbers, rows.categories)
        self._shares = made.shares(made.histogram(made.codes(rows.numbers, rows.categories)))
        chance, size = self._config.delta / len(self.columns), self._block * BLOCKS
        noise = {int(n): psi_noise(int(n), size, len(rows), chance) for n in np.unique(made.counts)}
        least = [self._config.psi_threshold + noise[int(n)] for n in made.counts]
        self._base = np.where(self._kind == 0, np.array(least)[self._of], LEAST)
        self._base[self._kind == JOINT] = self._config.joint_threshold
        for block in self._blocks[end:][-BLOCKS:]:
            self._histograms.append(made.histogram(made.codes(block.numbers, block.categories)))

    def _thresholds(self) -> Floats:
        """What each statistic of the newest window must pass now; infinite where it may not alarm."""
        habit = np.array(self._habit)[:-1]  # the newest may be of a shift that has begun
        known = np.isfinite(habit).sum(axis=0) >= SMALLEST_HABIT
        thresholds = np.full(len(self._of), np.inf)
        usual = 2.0 * np.nanquantile(habit[:, known], 0.9, axis=0)
        lesson = np.where(self._alarms >= LESSON, 1.5 * self._largest, 0.0)
        thresholds[known] = (self._base + lesson)[known] + usual
        return thresholds

    def _judge(self, reference: Bins, effects: Floats, version: str) -> list[Alert]:
        """At most one alert: of the statistic that passes its threshold by most; all columns that did are in it.

        It is of `joint` only if no column alarms by itself: what moves often relates otherwise too.
        """
        if len(self._habit) <= SMALLEST_HABIT or self._seen < self._quiet_until:
            return []
        evidence = self._evidence.values
        limit = SHARE * self._config.false_alarms_per / self._block * len(self._of)
        if evidence.max() < limit:
            return []
        thresholds = self._thresholds()
        passed = effects > thresholds  # false where it is not a number
        alarmed = passed & (evidence >= limit)
        if not alarmed.any():
            return []
        self._quiet_until = self._seen + self._config.cooldown
        self._alarms[passed] += 1
        self._largest[passed] = np.maximum(self._largest[passed], effects[passed])
        if (alarmed & (self._kind != JOINT)).any():
            alarmed &= self._kind != JOINT
        worst = int(np.argmax(np.where(alarmed, effects / thresholds, 0.0)))
        return [self._alert(reference, effects, thresholds, passed, worst, version)]

    def _alert(
        self,
        reference: Bins,
        effects: Floats,
        thresholds: Floats,
        passed: NDArray[np.bool_],
        worst: int,
        version: str,
    ) -> Alert:
        end = len(self._blocks) - self._age
        before = Watched.concat(self._blocks[max(0, end - self._made_of) : end])
        newest = Watched.concat(self._blocks[-2 * BLOCKS :])
        sides = Sides(reference, self._shares, before, newest, self._seen_values.unseen(newest.categories))
        kind, evidence = int(self._kind[worst]), self._evidence.values
        columns = list(dict.fromkeys(self._of[passed & (self._kind != JOINT)].tolist()))
        if kind == JOINT:
            assert self._joint is not None
            onset = self._joint.onset(newest, BLOCKS)
            found, pairs, message = related(sides, self._joint, onset, self._block, self._inputs)
            moved, told = affected(sides, onset, columns, self.columns)
            named = {each.name for each in found}
            found += [each for each in moved if each.name not in named]
            details = {"columns": told, "pairs": pairs}
            subject = found[0].name
        else:
            onset = sides.onset(int(self._of[worst]), STATISTICS[kind] == "new_values")
            found, told = affected(sides, onset, columns, self.columns)
            details = {"columns": told}
            subject = self.columns[self._of[worst]]
            first = next(each for each in found if each.name == subject)
            message = "; ".join(f"{each.name} is {each.change}" for each in (first, *_others(found, subject)))
        values = {
            f"{STATISTICS[self._kind[i]]}.{self.columns[self._of[i]] if self._of[i] >= 0 else 'inputs'}": [
                float(effects[i]) if np.isfinite(effects[i]) else None,
                float(thresholds[i]) if np.isfinite(thresholds[i]) else None,
                float(evidence[i]),
            ]
            for i in range(len(effects))
        }
        limit = SHARE * self._config.false_alarms_per / self._block * len(self._of)
        level: Literal["input", "score"] = "score" if self._of[worst] == self._score_at else "input"
        return Alert(
            alert_id=f"{STATISTICS[kind]}-{self._seen}",
            detector=STATISTICS[kind],
            level=level,
            subject=subject,
            strength=float(effects[worst]),
            threshold=float(thresholds[worst]),
            since_event_id=str(newest.ids[onset]),
            since_ms=int(newest.times[onset]),
            event_ms=int(newest.times[-1]),
            version=version,
            message=message,
            severity=max(each.severity for each in found),
            features=tuple(found),
            details={
                "block": self._block,
                "evidence_needed": limit,
                "effect_threshold_evidence": values,
                **details,
            },
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays of numbers and text; after `load` the detector goes on exactly as here."""
        rows = Watched.concat([*self._blocks, self._pending])
        counts = [self._counted, self._seen, self._quiet_until]
        mine: dict[str, NDArray[Any]] = {
            "numbers": rows.numbers,
            "categories": rows.categories,
            "ids": rows.ids,
            "times": rows.times,
            "first": self._first.copy(),
            "alarms": self._alarms.copy(),
            "largest": self._largest.copy(),
            "newest": self._newest.copy(),
            "learned": np.array(self._learned, np.int64),
            "habit": np.array(self._habit, np.float64).reshape(-1, len(self._of)),
            "blocks": np.array([len(self._blocks), self._made_of, self._age], np.int64),
            "counts": np.array(counts, np.int64),
            "new": np.array(self._new, np.float64).reshape(len(self._new), len(self._categories)),
            "seen": self._seen_values.state(),
        }
        return mine | prefixed("evidence", self._evidence.state())

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`, for a detector of the same schema and settings."""
        rows = Watched(state["numbers"], state["categories"], state["ids"], state["times"])
        blocks, self._made_of, self._age = state["blocks"].tolist()
        self._counted, self._seen, self._quiet_until = state["counts"].tolist()
        size = self._block
        self._blocks = [rows.slice(i * size, (i + 1) * size) for i in range(blocks)]
        self._pending = rows.slice(blocks * size, len(rows))
        self._habit = deque(state["habit"].copy(), maxlen=HABIT + 1)
        self._newest, self._first = state["newest"].copy(), state["first"].copy()
        learned = state["learned"].tolist() if "learned" in state else []  # older states do not say
        self._learned = deque(learned, maxlen=BLOCKS)
        self._alarms, self._largest = state["alarms"].copy(), state["largest"].copy()
        self._new = deque(state["new"], maxlen=BLOCKS)
        self._seen_values.load(state["seen"])
        self._evidence.load(part("evidence", state))
        if self._joint is not None:
            self._joint.keep(0)
            for block in self._blocks:
                self._joint.add(block)
        self._make_reference()


def _others(found: Sequence[Any], subject: str) -> list[Any]:
    """The next worst columns, five at most."""
    return [each for each in found if each.name != subject][:5]

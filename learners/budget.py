"""The compute budget of an arena: what models beside the champion may take of the learner's work.

Work is counted by an estimate that depends on models and rows only (`learners.work`), never on a clock: so what is done
and what is left out is a function of the examples, and a replay of the ledger does and leaves out the same. The account
is a token bucket: every example that the champion learns earns the others their share, what they do not use is saved up
to a limit, and what they would do without credit is left out. So in the long run the champion has its share of a core,
and at no time do others hold it up for longer than what was saved.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArenaConfig:
    """The `[arena]` section of a task file. Raises ValueError, naming the field, for a value that cannot work."""

    budget: float = 0.8  # share of the learner's work that models beside the champion may take
    reserve_ms: int = 2_000  # as much of it can be saved up, for the time after an alarm

    def __post_init__(self) -> None:
        if not 0.0 < self.budget < 1.0:
            raise ValueError("budget must be above 0 and below 1")
        if self.reserve_ms < 1:
            raise ValueError("reserve_ms must be at least 1")


USUAL_ARENA = ArenaConfig()


TUNING_SAVES = 20  # the population saves up this part of what all can


class Account:
    """Credit in microseconds: earned with the champion's work, at most `most`."""

    def __init__(self, share: float, most: float, credit: float) -> None:
        self._rate, self._most, self.credit = share / (1.0 - share), most, credit

    def earn(self, work: float) -> None:
        """The champion did so much work."""
        self.credit = min(self._most, self.credit + work * self._rate)

    def has(self, work: float, keep: float = 0.0) -> bool:
        """Whether it can be paid and `keep` is left; a full account also pays what is more than it can ever hold."""
        return self.credit >= min(work + keep, self._most)

    def pay(self, work: float) -> None:
        """Take it off."""
        self.credit -= work

    def owe(self, work: float) -> None:
        """Take it off, down to a debt of `most` and no further: it would keep others out long after it ended."""
        self.credit = min(self.credit, max(self.credit - work, -self._most))


class Budget:
    """The account of all models beside the champion, and within it one for the population that is tuned.

    `champion`, `beside` and `tuned` (part of `beside`) are microseconds of work done so far, `passed` the examples
    that challengers passed over since there was no credit.
    """

    def __init__(self, config: ArenaConfig, tuning: float = 0.0) -> None:
        most = config.reserve_ms * 1_000.0
        self.share = config.budget
        self._all = Account(config.budget, most, most)  # full: the first alarm may be an early one
        # Tuning is in no hurry: it begins with nothing, and saves up little.
        self._tuning, self._most = Account(tuning, most / TUNING_SAVES, 0.0), most
        self.champion = self.beside = self.tuned = 0.0
        self.passed = 0

    def earn(self, work: float) -> None:
        """The champion is about to score and learn."""
        self.champion += work
        self._all.earn(work)
        self._tuning.earn(work)

    def spend(self, work: float, keep: float = 0.0) -> bool:
        """Pay for work beside the champion if there is credit, with `keep` left."""
        if not self._all.has(work, keep):
            return False
        self.beside += work
        self._all.pay(work)
        return True

    def must(self, work: float) -> None:
        """Account for what is done in any case: replaced champions that guard or are compared with, and catching up."""
        self.beside += work
        self._all.owe(work)

    def tune(self, work: float) -> bool:
        """Pay for work of the population, which leaves half of what can be saved to challengers."""
        if not self._tuning.has(work) or not self._all.has(work, self._most / 2):
            return False
        self._tuning.pay(work)
        self._all.pay(work)
        self.tuned += work
        self.beside += work
        return True

    def rows(self, each: float, most: int) -> int:
        """How many rows can be learned, at `each` microseconds, at most `most`; half of the credit is left."""
        return max(0, min(most, int(self._all.credit / 2 / each))) if each > 0 else most

    @property
    def spent(self) -> tuple[float, float, float, int]:
        """Milliseconds of the champion, beside it, and of the population; examples that were passed over."""
        return self.champion / 1_000, self.beside / 1_000, self.tuned / 1_000, self.passed

    def state(self) -> list[float]:
        """Everything, ready for JSON."""
        return [self._all.credit, self._tuning.credit, self.champion, self.beside, self.tuned, self.passed]

    def load(self, state: Sequence[float]) -> None:
        """The inverse of `state`."""
        self._all.credit, self._tuning.credit, self.champion, self.beside, self.tuned, passed = state
        self.passed = int(passed)

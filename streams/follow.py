"""What a rank above 0 does: it follows rank 0, whose commands are in `streams.crew`."""

import logging

from infra.settings import Settings
from learners import checkpoint
from learners.arena import Arena
from learners.drift import Alert
from learners.entries import Steered
from learners.parallel import Ranks
from learners.recipe import Recipe
from learners.slot import BadUpdate
from learners.trainer import warm_up
from streams.crew import Learn, Load, Publish, Save, Use
from streams.heads import Heads
from streams.kept import Kept, recipe_of
from streams.publishing import update_of
from streams.task import Task
from streams.training import steer

log = logging.getLogger(__name__)


def follow(task: Task, settings: Settings, ranks: Ranks) -> Arena:
    """What a rank above 0 does until rank 0 has ended, and the arena then. Raises UserError when a rank is gone."""
    kept = Kept.of(settings, task.name)
    heads, recipe = Heads(kept.store, task.name), recipe_of(task)
    warm_up(task.schema, *task.trained)
    arena = recipe.arena()
    while (command := ranks.hear()) is not None:
        try:
            match command:
                case Load(number):
                    found = checkpoint.load(kept.store, kept.checkpoints, number)
                    recipe = Recipe.from_dict(found.meta["recipe"])
                    loaded = recipe.arena()
                    loaded.load(found.files, found.meta["arena"])
                    arena = loaded
                case Use(settings_of, fresh):
                    recipe = Recipe.from_dict(settings_of)
                    arena = recipe.arena(None if fresh else arena)
                case Learn(batch, created_ms):
                    arena.observe(batch, created_ms)
                case Publish(lineage, whole, above):
                    update_of(arena.arm(lineage), whole, above)
                case Save():
                    arena.state()
                case Steered():
                    steer(arena, command, recipe.schema, heads)
                case Alert():
                    arena.warned(command)
        except (BadUpdate, KeyError, ValueError, TypeError) as error:
            # Rank 0 meets the same, and says what it does instead.
            log.warning("%s could not be followed: %r", type(command).__name__, error)
    return arena

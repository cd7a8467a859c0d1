"""What `[model]` and `[challenger]` of a task file must fulfil together with the rest of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from learners.batch import FOREST_FAMILIES, GRADIENT_FAMILIES, READS, SEQUENCE_FAMILIES, ModelConfig
from streams.task import Task
from streams.task_toml import Table, listed, nearest, shown

_NETS = ("dcn", "deepfm", "mlp", "two_tower", *READS)
_GRADIENTS = ("family", GRADIENT_FAMILIES)
# key -> the other key that decides whether it is used, and with which of its values
USED_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "activation": ("family", _NETS),
    "table": _GRADIENTS,
    "admit_after": ("table", ("exact",)),
    "expire_after": ("table", ("exact",)),
    "units": ("family", tuple(READS)),
    "layers": ("family", SEQUENCE_FAMILIES),
    "recent_labels": ("family", ("dcn", "deepfm", "mlp", "logistic")),
    "tower": ("family", ("two_tower",)),
    "momentum": ("optimiser", ("sgd",)),
    "nesterov": ("optimiser", ("sgd",)),
    "l1": ("optimiser", ("ftrl",)),
    "l2": ("optimiser", ("ftrl",)),
    "loss": _GRADIENTS,
    "positive_weight": _GRADIENTS,
    "focal_gamma": ("loss", ("focal",)),
    "schedule": _GRADIENTS,
    "schedule_factor": ("schedule", ("step", "cosine", "plateau")),
    "warmup_steps": _GRADIENTS,
    "smallest_batch": _GRADIENTS,
    "shards": _GRADIENTS,
    "spread_table": _GRADIENTS,
    "precision": _GRADIENTS,
    "replay": _GRADIENTS,
    "replay_rows": _GRADIENTS,
    "replay_keep": _GRADIENTS,
    "ewc": _GRADIENTS,
    "renew": ("family", _NETS),
    "random_features": ("family", ("rff_svm",)),
    "kernel_width": ("family", ("rff_svm",)),
    "neighbours": ("family", ("knn",)),
    "window": ("family", ("knn",)),
    "trees": ("family", ("adaptive_random_forest",)),
    "leaves": ("family", FOREST_FAMILIES),
    "grace": ("family", FOREST_FAMILIES),
    "split_confidence": ("family", FOREST_FAMILIES),
}


def check_used(table: Table, config: ModelConfig) -> None:
    """Every key that the table has means something with these settings: one without effect is a mistake."""
    for key in table.data:
        if key in USED_WITH:
            other, values = USED_WITH[key]
            if getattr(config, other) not in values:
                said = f"{table.name(key)} has no effect with {other} = {shown(getattr(config, other))}"
                table.fail(key, said, f"remove this line; it is for {other} {listed(values)}")
    for key in ("replay_rows", "replay_keep"):
        if key in table.data and not config.replay:
            table.fail(
                key, f"{table.name(key)} has no effect without replay", "add replay = 1, or remove this line"
            )
    if "spread_table" in table.data and config.spread_table and config.shards == 1:
        said = f"{table.name('spread_table')} has no effect with shards = 1, which is for one rank"
        table.fail(
            "spread_table", said, "write shards = 2, or as many as there are ranks, or remove this line"
        )
    if config.smallest_batch > config.batch_size:
        said = (
            f"{table.name('smallest_batch')} {config.smallest_batch} is above batch_size {config.batch_size}"
        )
        own = "smallest_batch" if "smallest_batch" in table.data else "batch_size"
        table.fail(own, said, f"write smallest_batch = {config.batch_size} or less")
    if config.optimiser == "ftrl" and (config.schedule, config.warmup_steps) != ("constant", 0):
        given = next((key for key in ("schedule", "warmup_steps", "optimiser") if key in table.data), None)
        said = f"{table.name()}: ftrl lowers the rate of each weight by itself and follows no schedule"
        table.fail(
            given, said, 'write schedule = "constant" and warmup_steps = 0, or choose another optimiser'
        )


MOST_RIVALS = 8


def check_rivals(tables: Sequence[Table], configs: Sequence[ModelConfig]) -> None:
    """Several challengers differ, and are not too many: each more makes the test of all of them harder to pass."""
    for number, (table, config) in enumerate(zip(tables, configs, strict=True), 1):
        if number > MOST_RIVALS:
            said = f"there are {len(tables)} [[challenger]] tables, more than {MOST_RIVALS}"
            table.fail(None, said, "remove some: they share drift.alpha, and each takes its part of the work")
        if config in configs[: number - 1]:
            said = f"challenger {number} is the same as challenger {configs.index(config) + 1}"
            table.fail(None, said, "remove this table, or give it another family or learning_rate")


_BLOCKS = {
    "series": "add last = 8 to one of [[features]]",
    "text": 'add a field such as comment = { type = "text" } under [event.fields]',
    "image": 'add a field such as photo = { type = "image" } under [event.fields]',
}


def check_blocks(table: Table, config: ModelConfig, task: Task) -> None:
    """A family that is made for sequences, say, has something to read."""
    kinds = READS.get(config.family, ())
    if kinds and not task.schema.of_kind(*kinds):
        said = f"{table.name()}: the family {config.family} has nothing to read in this task"
        table.fail("family" if "family" in table.data else None, said, _BLOCKS[kinds[0]])


def with_tower(table: Table, config: ModelConfig, task: Task) -> ModelConfig:
    """The settings with the second tower's columns: without a list, those of all entities but the key's."""
    if config.family != "two_tower":
        return config
    columns = (*task.numbers, *task.schema.fields)
    for name in config.tower:
        if name not in columns:
            fix = f"{nearest(name, columns)}columns are {listed(columns)}"
            table.fail("tower", f"{table.name('tower')} lists {shown(name)}, which is no column", fix)
    of_others: Callable[[str], bool] = {
        column
        for entity in task.entities[1:]
        for column in (entity.field, *(task.views[entity.name].columns if entity.name in task.views else ()))
    }.__contains__
    tower = config.tower or tuple(filter(of_others, columns))
    if not tower or set(tower) >= set(columns):
        some = "every column" if tower else "no column"
        fix = f"list some in tower, for example tower = [{shown(columns[-1])}]; columns are {listed(columns)}"
        table.fail("tower" if "tower" in table.data else "family", f"the second tower has {some}", fix)
    return replace(config, tower=tower)

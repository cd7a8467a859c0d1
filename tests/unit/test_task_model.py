"""The keys of [model] and [challenger]: each family and setting from a file, and what makes no sense together."""

from pathlib import Path

import pytest

from infra.errors import UserError
from learners.batch import FAMILIES, READS
from learners.models import build_model
from streams.task import load_task
from streams.task_parse import parse_task
from tests.stream_records import TRIPS, task

FIELDS = 'note = { type = "text" }\nphoto = { type = "image" }\n[entities]'
LAST = '[[features]]\nentity = "driver"\nvalue = "city"\nlast = 4\n'
LINE = len((TRIPS + "[model]").splitlines())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_chosen_and_built(family: str) -> None:
    more = 'tower = ["city"]\n' if family == "two_tower" else ""
    text = TRIPS.replace("[entities]", FIELDS) + f'[model]\nfamily = "{family}"\n{more}{LAST}'
    made = parse_task(text, "trips.toml", Path("/somewhere/trips.toml"))
    assert made.model.family == made.challenger.family == family
    assert build_model(made.schema, made.model, 1).config.family == family


def test_the_settings_of_a_net_are_read() -> None:
    text = (
        '[model]\noptimiser = "sgd"\nmomentum = 0.9\nnesterov = true\nactivation = "gelu"\nloss = "focal"\n'
        'focal_gamma = 1.5\npositive_weight = 4\nschedule = "cosine"\nschedule_steps = 500\n'
        "schedule_factor = 0.1\nwarmup_steps = 50\nsmallest_batch = 16\n"
        '[challenger]\noptimiser = "ftrl"\nl1 = 0.5\nl2 = 1.0\nschedule = "constant"\nwarmup_steps = 0\n'
    )
    model, challenger = task(text).model, task(text).challenger
    assert (model.optimiser, model.momentum, model.nesterov, model.activation) == ("sgd", 0.9, True, "gelu")
    assert (model.loss, model.focal_gamma, model.positive_weight) == ("focal", 1.5, 4.0)
    assert (model.schedule, model.schedule_steps, model.schedule_factor) == ("cosine", 500, 0.1)
    assert (model.warmup_steps, model.smallest_batch) == (50, 16)
    assert (challenger.optimiser, challenger.l1, challenger.l2, challenger.loss) == (
        "ftrl",
        0.5,
        1.0,
        "focal",
    )


@pytest.mark.parametrize(
    ("lines", "at", "said", "fix"),
    [
        (
            ["neighbours = 3"], 1, 'model.neighbours has no effect with family = "dcn"',
            "remove this line; it is for family knn",
        ),
        (
            ['family = "knn"', 'loss = "focal"'], 2, 'model.loss has no effect with family = "knn"',
            "remove this line; it is for family dcn, deepfm, logistic, mlp, two_tower, svm, rff_svm",
        ),
        (
            ['family = "two_tower"', "recent_labels = [4]"], 2,
            'model.recent_labels has no effect with family = "two_tower"',
            "remove this line; it is for family dcn, deepfm, mlp, logistic",
        ),
        (
            ['family = "knn"', "shards = 2"], 2, 'model.shards has no effect with family = "knn"',
            "remove this line; it is for family dcn, deepfm, logistic",
        ),
        (
            ['family = "knn"', "spread_table = true"], 2, 'model.spread_table has no effect with family = "knn"',
            "remove this line; it is for family dcn, deepfm, logistic",
        ),
        (
            ["spread_table = true"], 1, "model.spread_table has no effect with shards = 1, which is for one rank",
            "write shards = 2, or as many as there are ranks",
        ),
        (
            ["ewc = 10", "shards = 2", "spread_table = true"], 1, "model: model ewc does not go with spread_table",
            "leave one of them out",
        ),
        (
            ["admit_after = 3"], 1, 'model.admit_after has no effect with table = "hashed"',
            "remove this line; it is for table exact",
        ),
        (
            ['family = "knn"', 'table = "exact"'], 2, 'model.table has no effect with family = "knn"',
            "remove this line; it is for family dcn",
        ),
        (
            ["units = 8"], 1, 'model.units has no effect with family = "dcn"',
            "remove this line; it is for family rnn, gru, lstm, transformer, text_cnn, text_rnn_cnn, image_cnn",
        ),
        (
            ['family = "logistic"', "renew = 0.01"], 2, 'model.renew has no effect with family = "logistic"',
            "remove this line; it is for family dcn, deepfm, mlp, two_tower",
        ),
        (
            ['replay_keep = "reservoir"'], 1, "model.replay_keep has no effect without replay",
            "add replay = 1, or remove this line",
        ),
        (
            ["ewc = 10", "renew = 0.01"], 1, "model: model ewc and renew do not go together",
            "leave one out",
        ),
        (
            ["momentum = 0.9"], 1, 'model.momentum has no effect with optimiser = "adam"',
            "remove this line; it is for optimiser sgd",
        ),
        (
            ["smallest_batch = 300"], 1, "model.smallest_batch 300 is above batch_size 256",
            "write smallest_batch = 256 or less",
        ),
        (
            ['optimiser = "ftrl"', 'schedule = "step"'], 2,
            "model: ftrl lowers the rate of each weight by itself and follows no schedule",
            'write schedule = "constant" and warmup_steps = 0, or choose another optimiser',
        ),
        (
            ['family = "svm"', 'loss = "bce"'], 2,
            "model: model loss 'bce' does not go with family 'svm'",
            'hinge is the loss of svm and rff_svm, which have no other; write loss = "auto"',
        ),
        (
            ['optimiser = "sgd"', "nesterov = true"], 2, "model: model nesterov is true without momentum",
            "give a momentum too, such as 0.9",
        ),
        (
            ['family = "knnn"'], 1, 'model.family is "knnn"',
            f'did you mean "knn"? use one of {", ".join(FAMILIES)}',
        ),
        (
            ['family = "knn"', "window = 0"], 2, "model.window must be from 1 to 32768, not 0",
            "for example window = 2000",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_line(lines: list[str], at: int, said: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        task("[model]\n" + "\n".join(lines) + "\n")
    assert caught.value.message.startswith(f"trips.toml:{LINE + at}: {said}")
    assert caught.value.fix.startswith(fix)


def test_there_may_be_several_challengers() -> None:
    made = task(
        '[[challenger]]\nlearning_rate = 0.01\n[[challenger]]\nfamily = "naive_bayes"\nbatch_size = 64\n'
    )
    assert (made.challenger.family, made.challenger.learning_rate) == (made.model.family, 0.01)
    assert [(other.family, other.batch_size) for other in made.others] == [("naive_bayes", 64)]
    assert task('[challenger]\nfamily = "mlp"\n').others == ()


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ("[[challenger]]\nrows = 64\n" * 2, 2, "challenger 2 is the same as challenger 1"),
        ('[[challenger]]\n[[challenger]]\nfamily = "knn"\nunits = 2\n', 3, "challenger.units has no effect"),
        ("[[challenger]]\n[[challenger]]\nrows = -1\n", 2, "challenger.rows must be from"),
        ("".join(f"[[challenger]]\nbatch_size = {n}\n" for n in range(1, 10)), 16, "there are 9 [[challenger]] tables"),
    ],
)  # fmt: skip
def test_a_wrong_challenger_among_several_is_named_by_its_line(text: str, at: int, said: str) -> None:
    with pytest.raises(UserError) as caught:
        task(text)
    assert caught.value.message.startswith(f"trips.toml:{LINE + at}: {said}")


def test_a_challenger_that_is_no_table_says_how_to_write_it() -> None:
    with pytest.raises(UserError, match="challenger must be a table, or tables in double brackets"):
        parse_task("challenger = [1]\n" + TRIPS, "trips.toml", Path("/somewhere/trips.toml"))


@pytest.mark.parametrize("family", READS)
def test_a_family_with_nothing_to_read_says_what_to_add(family: str) -> None:
    with pytest.raises(UserError, match=f"the family {family} has nothing to read in this task") as caught:
        task(f'[model]\nfamily = "{family}"\n')
    assert caught.value.fix.startswith("add ")


def test_neighbours_that_take_too_much_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("task_size", "task_parse"):
        monkeypatch.setattr(f"streams.{module}.LARGEST_MODEL", 15 << 20)
    with pytest.raises(UserError, match=f":{LINE + 3}: model: a whole model can take") as caught:
        task('[model]\nfamily = "knn"\nwindow = 32768\nrows = 1048576\n')
    assert caught.value.fix.startswith("lower rows (now 1048576) to ")
    fields = "".join(f'n{i} = {{ type = "number" }}\n' for i in range(130))
    text = TRIPS.replace("[entities]", fields + "[entities]") + '[model]\nfamily = "knn"\nwindow = 32768\n'
    with pytest.raises(UserError, match="lower window, or give the model fewer columns") as caught:
        parse_task(text, "trips.toml", Path("/somewhere/trips.toml"))
    assert f":{LINE + 132}:" in caught.value.message


def test_the_second_tower_has_the_other_entities_columns_or_those_that_are_named() -> None:
    clicks = load_task("clicks")
    text = clicks.text.replace("[model]\n", '[model]\nfamily = "two_tower"\n')
    made = parse_task(text, "clicks.toml", clicks.path)
    assert "item_id" in made.model.tower
    assert all(name.startswith("item_") for name in made.model.tower)
    assert made.challenger.tower == made.model.tower
    build_model(made.schema, made.model, 1)
    for tower, words in (
        ('["item"]', 'tower lists "item", which is no column'),
        (str([*made.numbers, *made.categories]).replace("'", '"'), "the second tower has every column"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            parse_task(text.replace("[model]\n", f"[model]\ntower = {tower}\n"), "clicks.toml", clicks.path)
        assert caught.value.fix


def test_with_one_entity_the_second_tower_has_to_be_named() -> None:
    start = TRIPS.rindex("[[features]]")
    alone = TRIPS.replace('zone = "zone"\n', "").replace(TRIPS[start : TRIPS.index("[serving]")], "")
    text = alone + '[model]\nfamily = "two_tower"\n'
    with pytest.raises(UserError, match="the second tower has no column") as caught:
        parse_task(text, "trips.toml", Path("/somewhere/trips.toml"))
    assert "list some in tower, for example tower = [" in caught.value.fix
    named = parse_task(text + 'tower = ["city"]\n', "trips.toml", Path("/somewhere/trips.toml"))
    assert named.model.tower == ("city",)

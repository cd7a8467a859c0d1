"""What a task file may say of a task that is not binary, and the words about what it may not."""

from pathlib import Path

import pytest

from infra.errors import UserError
from streams.task import Task
from streams.task_parse import parse_task
from tests.kind_streams import RIDES

VALUES = RIDES.replace("KIND", "regression").replace("METRIC", "").replace("LABEL", "minutes")


def parse(text: str) -> Task:
    return parse_task(text, "my.toml", Path("/somewhere/my.toml"))


def complaint(old: str, new: str) -> str:
    assert old in VALUES
    with pytest.raises(UserError) as caught:
        parse(VALUES.replace(old, new, 1))
    return str(caught.value)


def test_a_regression_task() -> None:
    task = parse(VALUES.replace('missing = "drop"', "missing = 0.1\nmin = 0\nmax = 600"))
    assert (task.kind, task.metric, task.schema.target.kind) == ("regression", "rmse", "regression")
    assert (task.label.min, task.label.max) == (0.0, 600.0)
    assert task.label.missing == pytest.approx(0.1, abs=1e-8)
    assert task.label.missing != 0.1  # it is the float32 that labels are compared with
    assert task.schema_hash != parse(VALUES.replace("regression", "binary")).schema_hash


@pytest.mark.parametrize(
    ("old", "new", "message", "fix"),
    [
        ('"regression"', '"ranking"', 'my.toml:4: task.kind is "ranking"', "use one of binary, multiclass, regression"),
        (
            'kind = "regression"',
            'kind = "regression"\nmetric = "auc"',
            'my.toml:5: task.metric "auc" is one of binary tasks, and this is a regression task',
            'use rmse, mae, r2, or write kind = "binary"',
        ),
        (
            'kind = "regression"',
            'metric = "rmse"',
            'my.toml:4: task.metric "rmse" is one of regression tasks, and this is a binary task',
            'use auc, average_precision, or write kind = "regression"',
        ),
        ('missing = "drop"', "", "my.toml:17: label.missing is missing", 'or missing = "drop" (learn nothing from it)'),
        ('missing = "drop"', 'missing = "zero"', 'label.missing is "zero"', 'use a number or "drop"'),
        ('missing = "drop"', "missing = true", "label.missing is true", 'use a number or "drop"'),
        ('missing = "drop"', "missing = 1e16", "label.missing is 1e+16", 'use a number or "drop"'),
        (
            'missing = "drop"',
            "missing = 0\nmin = 1",
            "label.missing is 0, which label.min and label.max refuse as a label",
            'use a number within these bounds or "drop"',
        ),
        ('missing = "drop"', 'missing = "drop"\nmin = 2\nmax = 1', "label.max = 1 is below min = 2", "swap the two"),
        (
            '"mlp"',
            '"naive_bayes"',
            "my.toml:28: model: family 'naive_bayes' counts classes and cannot learn a regression task",
            "use one of dcn, deepfm, logistic, mlp, two_tower, svm",
        ),
        (
            '"mlp"',
            '"svm"\nloss = "hinge"',
            "loss 'hinge' does not go with a regression task",
            "use one of auto",
        ),
        (
            '"mlp"',
            '"mlp"\nloss = "focal"',
            "my.toml:29: model: loss 'focal' does not go with a regression task",
            "use one of auto, mse, mae, huber",
        ),
        (
            "[challenger]",
            "[challenger]\npositive_weight = 2.0",
            "challenger: positive_weight has no meaning in a regression task",
            "leave it out",
        ),
        (
            "[challenger]",
            "[guard]\nmax_bias = 0.2\n[challenger]",
            "guard.max_bias has no effect in a regression task",
            "remove this line",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_its_line_and_the_fix(
    old: str, new: str, message: str, fix: str
) -> None:
    said = complaint(old, new)
    assert message in said
    assert fix in said


def test_bounds_of_labels_are_for_values_only() -> None:
    text = VALUES.replace("regression", "binary").replace('missing = "drop"', "missing = 0\nmin = 0")
    with pytest.raises(UserError, match=r"label\.min has no meaning in a binary task"):
        parse(text)


CLASSES = VALUES.replace('"regression"', '"multiclass"\nclasses = ["red", "green"]')


def test_a_multiclass_task() -> None:
    task = parse(CLASSES.replace('missing = "drop"', 'missing = "green"'))
    assert (task.kind, task.metric, task.classes) == ("multiclass", "accuracy", ("red", "green"))
    assert (task.schema.target.width, task.label.missing) == (2, 1.0)
    assert task.schema_hash != parse(CLASSES.replace('"green"', '"blue"')).schema_hash
    weighted = parse(CLASSES.replace('"mlp"', '"mlp"\nclass_weights = [1, 2.5]'))
    assert weighted.model.class_weights == weighted.challenger.class_weights == (1.0, 2.5)


@pytest.mark.parametrize(
    ("old", "new", "message", "fix"),
    [
        ('classes = ["red", "green"]', "", "my.toml:2: task.classes is missing", 'add for example classes = ["red"'),
        ('["red", "green"]', '["red"]', "my.toml:5: task.classes has 1 names", "give 2 to 1000 of them"),
        ('["red", "green"]', '["red", "red"]', 'task.classes has "red" twice', "each class has a name of its own"),
        ('["red", "green"]', '["red", "drop"]', 'task.classes has "drop" among them', 'which is not "drop"'),
        ('["red", "green"]', "[1, 2]", "task.classes must be a list of texts", "for example"),
        ('"multiclass"', '"binary"', "task.classes has no meaning in a binary task", 'write kind = "multiclass"'),
        (
            'missing = "drop"',
            'missing = "gren"',
            'label.missing is "gren"',
            'did you mean "green"? use one of task.classes or "drop"',
        ),
        ('missing = "drop"', "missing = 0", "label.missing is 0", 'use one of task.classes or "drop"'),
        (
            '"mlp"',
            '"deepfm"',
            "family 'deepfm' says the products that it learns in one number and cannot learn a multiclass task",
            "use one of dcn, logistic, mlp",
        ),
        ('"mlp"', '"mlp"\nclass_weights = [1.0]', "model: class_weights is [1.0]", "give 2, in the order of"),
        ('"mlp"', '"mlp"\nclass_weights = "x"', "model.class_weights must be a list of numbers", "for example"),
        ('"mlp"', '"mlp"\nloss = "mse"', "loss 'mse' does not go with a multiclass task", "use one of auto, focal"),
    ],
)  # fmt: skip
def test_what_does_not_fit_classes_is_named_too(old: str, new: str, message: str, fix: str) -> None:
    assert old in CLASSES
    with pytest.raises(UserError) as caught:
        parse(CLASSES.replace(old, new, 1))
    assert message in str(caught.value)
    assert fix in str(caught.value)

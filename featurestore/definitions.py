"""What `feast -c featurestore apply` registers: the features of the built-in tasks, and of tasks that ran
here.

`feast apply` removes what it does not find, so the tasks that workers registered must be found too.
"""

import tomllib
from pathlib import Path
from typing import Any

from feast import Project
from feast.repo_config import load_repo_config

from featurestore.repository import PROJECT, applied_views, feast_objects
from featurestore.spec import View, parse_views

_HERE = Path(__file__).parent


def _built_in() -> dict[str, dict[str, View]]:
    """Task name → its views. The task files are read as data: the checks of a task are not this package's."""
    tasks = {}
    for path in sorted((_HERE.parent / "streams" / "tasks").glob("*.toml")):
        task: dict[str, Any] = tomllib.loads(path.read_text())
        entities, fields = task["entities"], task["event"]["fields"]
        numbers = {name for name, field in fields.items() if field["type"] == "number"}
        categories = {*fields, *entities.values()} - numbers
        tasks[task["task"]["name"]] = parse_views(
            list(entities), numbers, task.get("features", []), categories
        )
    return tasks


def _objects() -> dict[str, Any]:
    config = load_repo_config(_HERE, _HERE / "feature_store.yaml")
    home = (_HERE / config.registry.path).resolve().parent
    home.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"project": Project(name=PROJECT)}
    for task, views in (applied_views(home) | _built_in()).items():
        entities, feature_views, service = feast_objects(task, list(views), views)
        found |= {f"entity_{entity.name}": entity for entity in entities}
        found |= {f"view_{view.name}": view for view in feature_views}
        found[f"service_{service.name}"] = service
    return found


# Feast looks for its objects among the names of this module.
globals().update(_objects())

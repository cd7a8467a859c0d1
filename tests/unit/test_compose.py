"""docker-compose.yml without a container engine: its shape, its wiring, and that it fits this code base.

SCHEMA is the part of the Compose specification that the file uses, written from its prose. It is
closed: a misspelt key is an error. The tests at the end break the file on purpose to show that it is checked.
"""

import copy
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra.jar_pins import KAFKA
from infra.kafka import MAX_MESSAGE_BYTES
from infra.settings import KafkaTools, Settings, Worker

ROOT = Path(__file__).parents[2]
ROLES = ("serve", "join", "learn", "archive")
SERVERS = ("kafka", "redis", "clickhouse")

DURATION = {"type": "string", "pattern": r"^(\d+(us|ms|s|m|h))+$"}
NAME = {"type": "string", "minLength": 1}
WORDS = {"type": "array", "items": {"type": "string"}, "minItems": 1}


def table(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def named(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "patternProperties": {r"^[a-zA-Z0-9._-]+$": value},
        "additionalProperties": False,
    }


HEALTHCHECK = table(
    ("test",),
    test={
        "type": "array",
        "prefixItems": [{"enum": ["CMD", "CMD-SHELL"]}],
        "items": {"type": "string"},
        "minItems": 2,
    },
    interval=DURATION,
    timeout=DURATION,
    start_period=DURATION,
    retries={"type": "integer", "minimum": 1},
)
SERVICE = table(
    ("image",),
    image={"type": "string", "pattern": r"^[a-z0-9._/-]+:[A-Za-z0-9._-]+$"},
    build=table(("context",), context={"type": "string"}, dockerfile={"type": "string"}),
    command=WORDS,
    environment=named({"type": "string"}),
    ports={"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
    volumes={"type": "array", "items": {"type": "string", "pattern": r"^[a-z]+:/[a-z/]+$"}},
    depends_on=named(
        table(
            ("condition",),
            condition={"enum": ["service_started", "service_healthy", "service_completed_successfully"]},
        )
    ),
    healthcheck=HEALTHCHECK,
    restart={"enum": ["no", "always", "unless-stopped"]},
    init={"type": "boolean"},
    stop_grace_period=DURATION,
    profiles=WORDS,
    configs={"type": "array", "items": table(("source", "target"), source=NAME, target=NAME)},
    ulimits=named(table(("soft", "hard"), soft={"type": "integer"}, hard={"type": "integer"})),
)
SCHEMA = {
    **table(
        ("name", "services"),
        name={"type": "string"},
        services=named(SERVICE),
        configs=named(table(("file",), file=NAME)),
        volumes=named({"type": "null"}),
    ),
    "patternProperties": {"^x-": {}},
}


def interpolated(value: Any) -> Any:
    """The file as Compose sees it where no variable is set: ${NAME:-default} is the default, $$ is $."""
    if isinstance(value, dict):
        return {key: interpolated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item) for item in value]
    if isinstance(value, str):
        assert not re.search(r"(?<!\$)\$(?!\$|\{\w+:-)", value), f"{value} names a variable without a default"
        return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value).replace("$$", "$")
    return value


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))
    return loaded


class Asked(Mapping[str, str]):
    """An environment that remembers which variables were looked up."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def settings_read() -> set[str]:
    environment = Asked()
    for reader in (Settings, KafkaTools, Worker):
        reader.from_env(environment)
    return environment.names


def problems(compose: dict[str, Any]) -> list[str]:
    """What is wrong with the file, beyond its shape, in words."""
    services, volumes = compose["services"], compose.get("volumes", {})
    found = []
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            if other not in services:
                found.append(f"{name} depends on {other}, which is not there")
            elif wait["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                found.append(f"{name} waits for the health of {other}, which has no health check")
        for volume in service.get("volumes", []):
            if volume.partition(":")[0] not in volumes:
                found.append(f"{name} mounts {volume}, which is not declared")
        for config in service.get("configs", []):
            if not (
                ROOT / compose.get("configs", {}).get(config["source"], {"file": "nowhere"})["file"]
            ).exists():
                found.append(f"{name} has the config {config['source']}, which is not there")
        if service["image"].endswith(":latest"):
            found.append(f"{name} is not pinned")
        for variable in service.get("environment", {}):
            if variable.startswith("DRIFTLINE_") and variable not in settings_read():
                found.append(f"{name} sets {variable}, which nothing reads")
    return found


def test_shape(compose: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(compose)


def test_wiring(compose: dict[str, Any]) -> None:
    assert problems(compose) == []
    used = {
        volume.partition(":")[0] for service in compose["services"].values() for volume in service["volumes"]
    }
    assert used == set(compose["volumes"])


def test_every_part_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {*SERVERS, *ROLES, "simulate", "prometheus"}
    assert all("healthcheck" in services[server] for server in SERVERS)
    assert [name for name, service in services.items() if "profiles" in service] == ["simulate", "prometheus"]


def test_roles_share_their_settings_and_reach_the_servers(compose: dict[str, Any]) -> None:
    services = compose["services"]
    settings = [Settings.from_env(services[role]["environment"]) for role in (*ROLES, "simulate")]
    assert all(other == settings[0] for other in settings)
    assert settings[0].kafka in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert settings[0].online == "redis://redis:6379"
    clickhouse = services["clickhouse"]["environment"]
    user, password = clickhouse["CLICKHOUSE_USER"], clickhouse["CLICKHOUSE_PASSWORD"]
    assert (
        settings[0].archive == f"clickhouse://{user}:{password}@clickhouse:9000/{clickhouse['CLICKHOUSE_DB']}"
    )
    assert f"data:{settings[0].data}" in services["serve"]["volumes"]


def test_prometheus_asks_every_role_at_its_port(compose: dict[str, Any]) -> None:
    prometheus = compose["services"]["prometheus"]
    (config,) = prometheus["configs"]
    assert config["target"] == "/etc/prometheus/prometheus.yml"
    asked = yaml.safe_load((ROOT / compose["configs"][config["source"]]["file"]).read_text())
    assert set(asked) == {"global", "scrape_configs"}
    (job,) = asked["scrape_configs"]
    assert set(job) == {"job_name", "dns_sd_configs"}  # so the path is /metrics, by plain HTTP
    (found,) = job["dns_sd_configs"]
    assert sorted(found["names"]) == sorted(ROLES)
    assert found["type"] == "A"
    for role in found["names"]:
        settings = Settings.from_env(compose["services"][role]["environment"])
        assert settings.metrics_at == ("0.0.0.0", found["port"])


def test_kafka_is_the_one_we_test_with(compose: dict[str, Any]) -> None:
    kafka = compose["services"]["kafka"]
    assert kafka["image"] == f"apache/kafka:{KAFKA}"
    assert kafka["environment"]["KAFKA_MESSAGE_MAX_BYTES"] == str(MAX_MESSAGE_BYTES)


@pytest.mark.parametrize("role", [*ROLES, "simulate"])
def test_command_is_one_of_ours(compose: dict[str, Any], role: str) -> None:
    if importlib.util.find_spec("streams.cli") is None:
        pytest.skip("streams.cli is not there")
    import typer

    cli = importlib.import_module("streams.cli")
    app = next(
        value for value in vars(cli).values() if isinstance(value, typer.Typer) and value.registered_commands
    )
    commands: Any = typer.main.get_command(app)
    name, *arguments = compose["services"][role]["command"]
    assert name in commands.commands
    commands.commands[name].make_context(
        name, arguments
    )  # raises where an option or an argument does not fit


def test_dockerfile_copies_what_exists_and_the_builder_is_sent(compose: dict[str, Any]) -> None:
    build = compose["services"]["serve"]["build"]
    dockerfile = (ROOT / build["dockerfile"]).read_text()
    copied = [
        word for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for word in line.split()
    ]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"streams", "featurestore", "learners", "infra", "requirements.lock"} <= set(copied)
    assert set(copied) == sent
    assert all((ROOT / path).exists() for path in copied)


def rename_key(compose: dict[str, Any]) -> None:
    check = compose["services"]["kafka"]["healthcheck"]
    check["intervall"] = check.pop("interval")


def number_as_variable(compose: dict[str, Any]) -> None:
    compose["services"]["serve"]["environment"]["DRIFTLINE_PARTITIONS"] = 4


def open_port(compose: dict[str, Any]) -> None:
    compose["services"]["kafka"]["ports"] = ["9092:9092"]


@pytest.mark.parametrize("damage", [rename_key, number_as_variable, open_port])
def test_schema_refuses(compose: dict[str, Any], damage: Callable[[dict[str, Any]], None]) -> None:
    broken = copy.deepcopy(compose)  # roles share one object through the YAML anchor
    damage(broken)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(broken)


def test_wiring_problems_are_told(compose: dict[str, Any]) -> None:
    broken = copy.deepcopy(compose)
    del broken["services"]["redis"]["healthcheck"]
    broken["services"]["join"]["depends_on"] = {"nobody": {"condition": "service_started"}}
    broken["services"]["learn"]["volumes"] = ["elsewhere:/data"]
    broken["services"]["archive"]["environment"] = {"DRIFTLINE_KAFFKA": "kafka:19092"}
    broken["services"]["kafka"]["image"] = "apache/kafka:latest"
    broken["configs"]["prometheus"]["file"] = "infra/compose/prometheus.yaml"
    told = "\n".join(problems(broken))
    for words in (
        "health of redis",
        "nobody",
        "elsewhere",
        "DRIFTLINE_KAFFKA",
        "not pinned",
        "config prometheus",
    ):
        assert words in told

"""The rules that keep the code readable, checked on the source itself.

Imports only go down (streams, then featurestore and learners, then infra), the environment is read in one
place, files stay short, and nothing that is committed names a machine's folders or a package registry.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 400  # lines; about 300 is the aim

# package -> the packages of ours that it may import
BELOW = {
    "infra": set[str](),
    "featurestore": {"infra"},
    "learners": {"infra"},
    "streams": {"featurestore", "learners", "infra"},
}
# package -> what it must know nothing of, not even through another module of ours
STRANGERS = {
    "learners": {"kafka", "aiokafka", "faust", "feast", "clickhouse_driver", "chdb"},
    "featurestore": {"torch", "river", "safetensors", "kafka", "aiokafka", "faust"},
    "infra": {"torch", "river", "faust", "feast"},
}
# The environment belongs to settings.py; Kafka's Java inherits it whole.
READS_ENVIRONMENT = {"infra/settings.py", "infra/embedded.py"}

# Written in pieces, so that this file does not contain what it looks for.
HOSTS = [
    ("py", "pi.org"),
    ("files.python", "hosted.org"),
    ("download.py", "torch.org"),
    ("repo1.", "maven.org"),
    ("repo.", "maven.apache.org"),
    ("anaconda", ".org"),
    ("npm", "js.org"),
    ("crates", ".io"),
    ("gh", "cr.io"),
    ("qu", "ay.io"),
    ("docker", ".io"),
    ("proxy.golang", ".org"),
]
FOLDERS = ["ho" + "me", "wo" + "rk", "ro" + "ot", "Us" + "ers"]
FORBIDDEN = {
    "a package registry's host": "|".join(re.escape(head + tail) for head, tail in HOSTS),
    "a folder of one machine": rf"(?<![\w.}}])/(?:{'|'.join(FOLDERS)})/\w",
}


@cache
def committed() -> tuple[Path, ...]:
    """Every file that is, or would be, in the repository, relative to its root."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return tuple(path for name in done.stdout.split("\0") if name and (ROOT / (path := Path(name))).is_file())


@cache
def modules(package: str) -> dict[str, Path]:
    """Dotted name -> path of the modules of one package of ours, relative to the root."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        relative = path.relative_to(ROOT)
        parts = relative.with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = relative
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it; for `from a import b` both a and a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("package", BELOW)
def test_imports_only_go_down(package: str) -> None:
    wrong = [
        f"{path} imports {name}"
        for path in modules(package).values()
        for name in imports(path)
        if top(name) in BELOW.keys() - BELOW[package] - {package}
    ]
    assert wrong == []


@pytest.mark.parametrize("package", STRANGERS)
def test_a_package_does_not_know_its_strangers(package: str) -> None:
    ours = {name: path for other in BELOW for name, path in modules(other).items()}
    reached, waiting = dict[str, str](), [(name, name) for name in modules(package)]
    while waiting:  # every module of ours that the package imports, directly or not
        name, through = waiting.pop()
        if name in ours and name not in reached:
            reached[name] = through
            waiting += [(found, f"{through} -> {found}") for found in imports(ours[name]) if found in ours]
    wrong = [
        f"{through} imports {found}"
        for name, through in reached.items()
        for found in imports(ours[name])
        if top(found) in STRANGERS[package]
    ]
    assert wrong == []


def is_environment(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "putenv"):
            return True
        case ast.ImportFrom(module="os", names=names):
            return any(alias.name in {"environ", "environb", "getenv"} for alias in names)
    return False


def handed_over(module: ast.Module) -> set[ast.AST]:
    """Where it is passed on whole and unread: X.from_env(os.environ), or {**os.environ} for a child."""
    found = set[ast.AST]()
    for node in ast.walk(module):
        match node:
            case ast.Call(func=ast.Attribute(attr="from_env"), args=arguments):
                found.update(arguments)
            case ast.Dict(keys=keys, values=values):
                found.update(value for key, value in zip(keys, values, strict=True) if key is None)
    return found


def test_the_environment_is_read_in_one_place() -> None:
    wrong = [
        f"{path}:{getattr(node, 'lineno', 0)}"
        for package in BELOW
        for path in modules(package).values()
        if path.as_posix() not in READS_ENVIRONMENT
        for node in set(ast.walk(tree(path))) - handed_over(tree(path))
        if is_environment(node)
    ]
    assert wrong == []


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = project["project"]["dependencies"]
    declared = {re.split(r"[=<>!~\[; ]", requirement)[0] for requirement in named}
    providers = packages_distributions()
    wrong = [
        f"{path} imports {name}"
        for package in BELOW
        for path in modules(package).values()
        for name in {top(name) for name in imports(path)} - BELOW.keys() - sys.stdlib_module_names
        if not declared & {provider.lower().replace("_", "-") for provider in providers.get(name, [])}
    ]
    assert wrong == []


def test_dependencies_are_those_of_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    locked = set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert [requirement for requirement in wanted if requirement not in locked] == []


def test_what_a_package_needs_besides_code_is_installed_with_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["package-data"]
    needed = [
        path
        for path in committed()
        if path.parts[0] in BELOW and path.suffix != ".py" and path.parts[:2] != ("infra", "compose")
    ]
    assert {"py.typed", ".feastignore", "clicks.toml"} <= {path.name for path in needed}
    left_out = [
        path.as_posix()
        for path in needed
        if not any(path.match(f"{path.parts[0]}/{p}") for p in listed[path.parts[0]])
    ]
    assert left_out == []


def test_no_file_is_long() -> None:
    long = {
        path.as_posix(): lines
        for path in committed()
        if path.suffix == ".py" and (lines := len((ROOT / path).read_text().splitlines())) > LONGEST_FILE
    }
    assert long == {}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_committed_file_names(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    wrong = []
    for path in committed():
        try:
            lines = (ROOT / path).read_text().splitlines()
        except UnicodeDecodeError:
            continue  # not a text
        wrong += [f"{path}:{number}: {line}" for number, line in enumerate(lines, 1) if pattern.search(line)]
    assert wrong == []


def test_the_forbidden_words_are_found() -> None:
    samples = {
        "a package registry's host": "see https://" + "py" + "pi.org/project/x",
        "a folder of one machine": "open('" + "/ho" + "me/somebody/x')",
    }
    assert all(re.search(FORBIDDEN[what], sample) for what, sample in samples.items())
    assert not re.search(FORBIDDEN["a folder of one machine"], "https://example.org" + "/ho" + "me/x")

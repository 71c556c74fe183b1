"""What modules import, the package or the extra that is theirs brings; and an extra brings nothing else."""

import ast
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="of Python 3.11")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

# What is named is imported where these modules are used; all others do with what is always installed.
EXTRAS = {
    "avemo/serve": "serve",
    "avemo/exporting.py": "export",
    "avemo/data/objects.py": "streams",
    "avemo/data/landmarks.py": "landmarks",
    "avemo/models/transformer.py": "transformers",
    "kernels/fbp_kernels/triton": "gpu",
    "kernels/fbp_kernels/tools": "gpu",
}
WITHOUT = {"sounddevice"}  # of nobody's: who wants to hear a microphone is told to install it
UNSAID = {"dlib": ["dlib-bin"]}  # whose own list of its packages has a library alone
UNSEEN = {"onnxscript"}  # PyTorch's export to ONNX imports it


def test_every_import_is_brought_by_the_package_or_its_extra() -> None:
    modules = [p for top in ("avemo", "kernels/fbp_kernels") for p in (ROOT / top).rglob("*.py")]
    brought_by = distributions()
    missing = []
    for path in modules:
        name = path.relative_to(ROOT).as_posix()
        extra = extra_of(name)
        brought = closure((*dependencies(), *(dependencies(extra) if extra else ())))
        for package in imported(path):
            if not {normal(d) for d in brought_by.get(package, [])} & brought:
                missing.append(f"{name}: {package}")
    assert not missing


@pytest.mark.parametrize("extra", sorted(set(EXTRAS.values())))
def test_an_extra_brings_nothing_that_its_modules_do_not_import(extra: str) -> None:
    packages = {package for file in files_of(extra) for package in imported(file)}
    brought_by = distributions()
    used = {normal(d) for package in packages for d in brought_by.get(package, [package])}
    assert {normal(Requirement(r).name) for r in dependencies(extra)} <= used | UNSEEN


@pytest.mark.parametrize("extra", ["export", "serve", "streams", "transformers"])
def test_whoever_lacks_a_package_of_an_extra_is_told(extra: str) -> None:
    brought_by, own = distributions(), {normal(Requirement(r).name) for r in dependencies(extra)}
    files = files_of(extra)
    packages = {package for file in files for package in imported(file)}
    used = {p for p in packages if {normal(d) for d in brought_by.get(p, [p])} & own}
    assert used
    assert used <= {name for file in files for name in needed(file, extra)}


def files_of(extra: str) -> list[Path]:
    """The modules that are of no use without an extra."""
    places = [ROOT / place for place, e in EXTRAS.items() if e == extra]
    return [f for p in places for f in (p.rglob("*.py") if p.is_dir() else [p])]


def needed(path: Path, extra: str) -> set[str]:
    """The packages that a module's calls of `needs` name for an extra."""
    calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
    found = set()
    for call in calls:
        given = {k.arg: k.value for k in call.keywords}.get("extra")
        if isinstance(given, ast.Constant) and given.value == extra:
            found |= {a.value for a in call.args[1:] if isinstance(a, ast.Constant)}
    return found


@cache
def distributions() -> Mapping[str, list[str]]:
    """By the names of the packages in them; all that are installed are looked through."""
    return {**metadata.packages_distributions(), **UNSAID}


def imported(path: Path) -> set[str]:
    """The packages of others, PyTorch among them, that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"avemo", "fbp_kernels"} - WITHOUT


def extra_of(name: str) -> str | None:
    return next((e for place, e in EXTRAS.items() if f"{name}/".startswith(f"{place}/")), None)


def dependencies(extra: str | None = None) -> tuple[str, ...]:
    """The requirements of an extra, or those that are always installed."""
    return tuple(PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"])


@cache
def closure(requirements: tuple[str, ...]) -> set[str]:
    """The names of distributions that requirements bring, and of what those bring."""
    found: set[tuple[str, str]] = set()
    ahead = [(Requirement(r), "") for r in requirements]
    while ahead:
        requirement, of = ahead.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of}):
            continue
        for extra in requirement.extras | {""}:
            pair = (normal(requirement.name), extra)
            if pair not in found:
                found.add(pair)
                ahead += [(Requirement(r), extra) for r in required(pair[0])]
    return {name for name, _ in found}


def required(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # of another system
        return []


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

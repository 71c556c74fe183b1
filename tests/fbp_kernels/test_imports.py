"""Modules of the package import each other in one direction, and its tools are nobody's business but their own."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kernels" / "fbp_kernels"


def _modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its full name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(package: Path) -> dict[str, set[str]]:
    """The modules that each module names in an import, at its top or within a function.

    A name that is taken from a package is a module where there is one of that name, else what the package's
    `__init__` defines.
    """
    modules = _modules(package)
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        here = module if path.name == "__init__.py" else module.rpartition(".")[0]
        named: list[str] = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parts = here.split(".")[: len(here.split(".")) + 1 - node.level]
                base = ".".join([*parts, node.module] if node.module else parts)
                base = base if node.level else node.module or ""
                full = [f"{base}.{alias.name}" for alias in node.names]
                named += [name if name in modules else base for name in full]
        graph[module] = {name for name in named if name in modules}
    return graph


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = _imports(PACKAGE)
    assert "fbp_kernels.triton.tuning" in graph["fbp_kernels.triton.autotune"]
    assert "fbp_kernels.triton" in graph["fbp_kernels.triton.launch"]  # for `interpreted`
    assert len(graph["fbp_kernels"]) > 4
    graphlib.TopologicalSorter(graph).prepare()


def test_a_circle_is_found_within_functions_too(tmp_path: Path) -> None:
    package = tmp_path / "made"
    (package / "low").mkdir(parents=True)
    (package / "__init__.py").write_text("from .low import table\n")
    (package / "low" / "__init__.py").write_text("")
    (package / "low" / "table.py").write_text("def f():\n    from .. import search\n")
    (package / "search.py").write_text("import json\n")
    graphlib.TopologicalSorter(_imports(package)).prepare()
    (package / "search.py").write_text("import made.low.table\n")
    with pytest.raises(graphlib.CycleError, match=r"made\.search"):
        graphlib.TopologicalSorter(_imports(package)).prepare()


def test_nothing_outside_the_tools_imports_a_tool() -> None:
    tools = f"{PACKAGE.name}.tools"
    for module, named in _imports(PACKAGE).items():
        if not module.startswith(tools):
            assert not [name for name in named if name.startswith(tools)], module

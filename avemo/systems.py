"""The systems that can be trained by name, and the paper's figures of them.

A system is one file of `avemo/configs/systems`: its first comment says what it is, and the rest which parts it is put
together from. It says nothing of sizes: they are the paper's by default, and `--config small` has others.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
_FIGURES = Path(__file__).parent / "figures.yaml"


@dataclass(frozen=True)
class Figure:
    """A row of one of the paper's tables.

    Attributes:
        table: its number there, such as "III".
        title: of the table.
        corpus: that the figure is of.
        split: of that corpus.
        name: of the system, as the paper has it.
        accuracy: percent.
        system: our name of it, or None where it is quoted from another paper and is not one of ours.
        p_value: as the paper prints it, or None where it has none.
        initialization: of the weights, in Table I.
        single_model: whether it is one model and not several, in Table V.
    """

    table: str
    title: str
    corpus: str
    split: str
    name: str
    accuracy: float
    system: str | None = None
    p_value: str | None = None
    initialization: str | None = None
    single_model: bool | None = None


@dataclass(frozen=True)
class System:
    """A system that can be trained.

    Attributes:
        name: what `avemo train --config` takes.
        config: its file.
        summary: what it is, one line.
        streams: what it attends to: "audio", "video" or both.
        figures: the paper's figures of it, in the order of its tables.
    """

    name: str
    config: Path
    summary: str
    streams: tuple[str, ...]
    figures: tuple[Figure, ...]


@cache
def figures() -> tuple[Figure, ...]:
    """Every row of the paper's tables, in its order."""
    import yaml

    tables = yaml.safe_load(_FIGURES.read_text("utf-8"))
    return tuple(Figure(**table, **row) for table in tables for row in table.pop("rows"))


@cache
def systems() -> dict[str, System]:
    """The systems by name: first those of the paper's tables in its order, then the others."""
    order = [figure.system for figure in figures()]
    files = {path.stem: path for path in sorted((CONFIGS / "systems").glob("*.yaml"))}
    names = sorted(files, key=lambda name: order.index(name) if name in order else len(order))
    return {name: _system(name, files[name]) for name in names}


def system_names() -> list[str]:
    """The names alone, without the cost of what they are."""
    return sorted(path.stem for path in (CONFIGS / "systems").glob("*.yaml"))


def _system(name: str, config: Path) -> System:
    import yaml

    from avemo.models import ModelConfig, needed_streams
    from avemo.training.config import from_dict

    text = config.read_text("utf-8")
    values = yaml.safe_load(text)
    return System(
        name=name,
        config=config,
        summary=text.partition("\n")[0].removeprefix("# "),
        streams=needed_streams(from_dict(ModelConfig, values["model"])),
        figures=tuple(figure for figure in figures() if figure.system == name),
    )


def list_systems() -> None:
    """Lists the systems: name, streams, what each is, and the paper's figures of it.

    `avemo train --config NAME` trains one at the paper's sizes, `avemo train --config NAME --config small` at those of
    two cores.
    """
    every = systems()
    width = max(map(len, every))
    for system in every.values():
        print(f"{system.name:{width}}  {' and '.join(system.streams):15}  {system.summary}")
        for figure in system.figures:
            p_value = f", p-value {figure.p_value}" if figure.p_value else ""
            print(
                f"{'':{width}}  {'':15}  Table {figure.table} ({figure.corpus}, {figure.split}): "
                f"{figure.accuracy:.2f}%{p_value}"
            )
    print("\nIn the paper's tables, and not a system of ours:")
    for figure in figures():
        if figure.system not in every:
            print(
                f"  {figure.name}: Table {figure.table} ({figure.corpus}, {figure.split}): "
                f"{figure.accuracy:.2f}%"
            )

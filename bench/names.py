"""What the names of contenders say: which are ours, which replay a graph, and who is compared with whom."""

from collections.abc import Iterable

from .records import Case, Spread

ACCELERATED = "accelerated"  # a whole model on our kernels
# Projections, between forward and backward.
KEEPING = {
    f"{backend} {word}": keep
    for backend in ("native", "triton")
    for word, keep in (("keep", True), ("recompute", False))
}
OURS = ("native", "triton", *KEEPING, ACCELERATED)
PEERS = ("eager", "channels-last", "compile", "max-autotune", "products", "plain", "mfb")
COPY = "copy"  # what memory allows; not somebody who does the same
GRAPH = " graph"
_ORDER = (*OURS, *PEERS, COPY)


def plain(name: str) -> str:
    """A contender's name without the mark of a replayed graph."""
    return name.removesuffix(GRAPH)


def asked_as(name: str) -> str:
    """The word by which a contender is asked for: what it is, whatever it keeps or replays."""
    return plain(name).split()[0]


def is_ours(name: str) -> bool:
    """Whether a contender runs kernels of this repository."""
    return plain(name) in OURS


def ordered(names: Iterable[str]) -> list[str]:
    """Ours first, then the peers in the order of their documentation, then the rest; graphs after their plain ones."""

    def place(name: str) -> tuple[int, str, str]:
        base = plain(name)
        return _ORDER.index(base) if base in _ORDER else len(_ORDER), base, name

    return sorted(set(names), key=place)


def ours(case: Case) -> list[str]:
    """Our contenders of a case, in order."""
    return ordered(name for name in case.contenders if is_ours(name))


def peer_ratios(case: Case, contender: str) -> dict[str, Spread]:
    """A contender's ratios to those that it is fairly compared with, in order.

    A replayed graph saves the cost of launches whoever wrote the kernels, so graphs are compared with graphs:
    a graph leaves out the plain form of peers that are there as graphs too, and a plain contender leaves out
    graphs where it is there as a graph itself.
    """
    ratios = case.contenders[contender].ratios
    names = [name for name in ordered(ratios) if not is_ours(name)]
    if contender.endswith(GRAPH):
        names = [name for name in names if name + GRAPH not in ratios]
    elif contender + GRAPH in case.contenders:
        names = [name for name in names if not name.endswith(GRAPH)]
    return {name: ratios[name] for name in names}

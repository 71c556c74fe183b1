"""What is measured: every operator with its inputs, arithmetic and peers. A new one is a file and a line here."""

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.shapes import (
    ALL,
    CONVOLUTIONS,
    CURVES,
    FRAMES,
    HIDDEN,
    MAPS,
    SMALLEST_CONVOLUTIONS,
    SMALLEST_MAPS,
    Shape,
)

from . import (
    am_fbp,
    attention_pool,
    batch_norm,
    conv2d,
    dropout,
    fbp,
    local_response_norm,
    power_normalize,
    trunk_fbp,
    variants,
)
from .call import Call, Draw, Maker

__all__ = ["OPERATORS", "SUBJECTS", "Call", "Draw", "Subject"]

Sizes = dict[str, int]


@dataclass(frozen=True)
class Subject:
    """An operator, where it is measured.

    Attributes:
        make: its inputs at given sizes.
        sizes: by label: a name in the table of shapes.
        curves: sizes that are varied from those of `clip`.
    """

    make: Maker
    sizes: dict[str, Sizes]
    curves: tuple[str, ...] = field(default=())

    def points(self, curve: str) -> dict[str, Sizes]:
        """Sizes along a curve, by label."""
        clip = self.sizes["clip"]
        return {f"{curve}={value}": clip | {curve: value} for value in CURVES[curve]}


def _shapes(sizes: Callable[[Shape], Sizes], *, trunks: bool = False) -> dict[str, Sizes]:
    """The sizes of an operator at every shape that has what it needs."""
    return {name: sizes(s) for name, s in ALL.items() if s.H or not trunks}


_GLOBAL = _shapes(lambda s: {"B": s.B, "C": s.C, "D": s.D, "O": s.O_G, "K": s.K_G})
_TRUNKS = _shapes(
    lambda s: {"B": s.B, "H": s.H, "C": s.C, "D": s.D, "O": s.O_M, "K": s.K_M}, trunks=True
)
_BOTH = _shapes(
    lambda s: {n: getattr(s, n) for n in ("B", "C", "D", "O_G", "K_G", "H", "O_M", "K_M")},
    trunks=True,
)
_FRAMES = _shapes(
    lambda s: {
        "B": s.B,
        "T": FRAMES if s.B >= 32 else 2 * s.H,
        "C": s.C,
        "A": HIDDEN if s.B >= 32 else s.C,
        "H": s.H,
    },
    trunks=True,
)
_FUSED = _shapes(lambda s: {"B": s.B, "O": s.O_G + s.O_M})
_MAPS = {
    label: dict(zip("NCHW", sizes, strict=True)) for label, sizes in (MAPS | SMALLEST_MAPS).items()
}
_CONVOLUTIONS = {
    label: dict(zip("NCHWOkS", sizes, strict=True))
    for label, sizes in (CONVOLUTIONS | SMALLEST_CONVOLUTIONS).items()
}

OPERATORS = {
    "fbp": Subject(fbp.make, _GLOBAL, curves=("B", "K")),
    "fbp_biased": Subject(fbp.make_biased, _GLOBAL),
    "trunk_fbp": Subject(trunk_fbp.make, _TRUNKS, curves=("H",)),
    "am_fbp": Subject(am_fbp.make, _BOTH),
    "attention_pool": Subject(attention_pool.make, _FRAMES),
    "batch_norm": Subject(batch_norm.make, _MAPS),
    "conv2d": Subject(conv2d.make, _CONVOLUTIONS),
    "dropout": Subject(dropout.make, _FUSED, curves=("B",)),
    "local_response_norm": Subject(local_response_norm.make, _MAPS),
    "power_normalize": Subject(power_normalize.make, _FUSED),
}

# And what is compared with float64 besides.
SUBJECTS = OPERATORS | {
    "fbp_adaptive": Subject(variants.fbp_adaptive, _GLOBAL),
    "trunk_fbp_ragged": Subject(variants.trunk_fbp_ragged, _TRUNKS),
    "am_fbp_ragged": Subject(variants.am_fbp_ragged, _BOTH),
    "am_fbp_tiles": Subject(variants.am_fbp_tiles, _BOTH),
    "attention_pool_ragged": Subject(variants.attention_pool_ragged, _FRAMES),
    "local_response_norm_apart": Subject(variants.local_response_norm_apart, _MAPS),
}

"""What the bilinear operators hand to their kernels."""

from typing import NamedTuple

from torch import Tensor


class Level(NamedTuple):
    """The tensors of one part as the operators have them, with a dimension of trunks: 1 for the global part.

    Attributes:
        a: (B, H, C), any strides, as all here.
        v: (B, H, D).
        p: (H, C, N), N = O * K.
        q: (H, D, N).
        p_bias: (H, N) or None.
        q_bias: (H, N) or None.
        lengths: int64 (B,) or None.
        factor: K.
        adaptive: whether mu and eta scale the rows; only of a single trunk.
    """

    a: Tensor
    v: Tensor
    p: Tensor
    q: Tensor
    p_bias: Tensor | None
    q_bias: Tensor | None
    lengths: Tensor | None
    factor: int
    adaptive: bool

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, v, p and q."""
        return self.a, self.v, self.p, self.q

    @property
    def outputs(self) -> int:
        """O."""
        return self.p.shape[2] // self.factor


class Levels(NamedTuple):
    """The two parts that one launch does, of which one may be missing."""

    once: Level | None  # global
    each: Level | None  # trunks

    @property
    def there(self) -> list[Level]:
        """Those that are not missing."""
        return [level for level in self if level is not None]

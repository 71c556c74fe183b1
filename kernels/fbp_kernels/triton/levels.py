"""What the bilinear operators hand to their kernels."""

from typing import Any, NamedTuple

from torch import Tensor

TENSORS = 7  # of a part


class Level(NamedTuple):
    """The tensors of one part as the operators have them; of a single trunk, the dimension H may be left out.

    Attributes:
        a: (B, H, C), any strides, as all here but the lengths.
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
    def outputs(self) -> int:
        """O."""
        return self.p.shape[-1] // self.factor

    @property
    def trunks(self) -> int:
        """H."""
        shape = self.p.shape
        return shape[0] if len(shape) == 3 else 1


class Levels(NamedTuple):
    """The two parts that one launch does, of which one may be missing."""

    once: Level | None  # global
    each: Level | None  # trunks

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those of both parts."""
        missing: Any = (None,) * TENSORS
        once, each = self
        return (
            *(missing if once is None else once[:TENSORS]),
            *(missing if each is None else each[:TENSORS]),
        )

    @property
    def there(self) -> list[Level]:
        """Those that are not missing."""
        return [level for level in self if level is not None]

"""Memory layouts of (N, C, *) that the kernels over channels read: contiguous, or channels last."""

from torch import Tensor


def readable(x: Tensor) -> Tensor:
    """x itself where a kernel can read it, else a contiguous copy; what is no tensor an operator refuses."""
    if not isinstance(x, Tensor) or x.is_contiguous():
        return x
    # torch.vmap does not answer when it is asked for a memory format.
    if x.dim() in (4, 5) and x.movedim(1, -1).is_contiguous():
        return x
    return x.contiguous()

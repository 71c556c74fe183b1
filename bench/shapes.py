"""The shapes that everything is measured at; the one table of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of one AM-FBP call.

    Attributes:
        B: batch.
        C: audio width.
        D: video width.
        O_G: outputs of the global part.
        K_G: its factors per output.
        H: trunks, 0 where there is no per-trunk part.
        O_M: outputs of the per-trunk part.
        K_M: its factors per output.
        why: what the shape stands for.
    """

    B: int
    C: int
    D: int
    O_G: int
    K_G: int
    H: int
    O_M: int
    K_M: int
    why: str


SHAPES = {
    "clip": Shape(32, 256, 512, 128, 4, 8, 128, 4, "the paper's scale: launches and latency"),
    "batch": Shape(256, 256, 512, 256, 5, 10, 256, 5, "a large training batch"),
    "vqa": Shape(512, 2048, 1024, 1000, 5, 0, 0, 1, "the published MFB setting"),
    "web": Shape(8192, 1024, 1024, 1024, 4, 4, 512, 4, "throughput: arithmetic is all there is"),
}

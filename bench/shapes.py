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

SMALLEST = {
    "one": Shape(1, 1, 1, 1, 1, 1, 1, 1, "what a call costs beside its arithmetic"),
    "tiny": Shape(3, 5, 7, 4, 3, 2, 3, 2, "sizes that an interpreter can do"),
    "few": Shape(
        40, 264, 136, 66, 4, 3, 40, 3, "small, and in whole vectors, as Hopper's kernels ask for"
    ),
    "many": Shape(
        136, 264, 136, 66, 4, 3, 40, 3, "the same with more rows than its small batches have"
    ),
}

ALL = SHAPES | SMALLEST

# Sequences of attention: frames and hidden width; batch, width and trunks are those of the shape.
FRAMES, HIDDEN = 300, 128

# Feature maps (N, C, H, W) of the audio encoder: behind its first and its second convolution.
MAPS = {"conv1": (8, 96, 50, 150), "conv2": (8, 256, 24, 74)}
SMALLEST_MAPS = {"one": (1, 1, 1, 1), "tiny": (2, 5, 3, 4)}

# Convolutions (N, C, H, W) to O channels by kernels of side k, every S positions: the second and the fourth of the
# audio encoder, the second and the last of the video encoder, and what a small model has.
CONVOLUTIONS = {
    "small": (16, 24, 24, 38, 32, 3, 1),
    "audio2": (8, 96, 24, 75, 256, 5, 1),
    "audio4": (8, 384, 11, 37, 384, 3, 1),
    "face2": (304, 64, 32, 32, 128, 3, 2),
    "face4": (304, 256, 8, 8, 512, 3, 2),
}
SMALLEST_CONVOLUTIONS = {"one": (1, 1, 1, 1, 1, 1, 1), "tiny": (2, 5, 3, 4, 6, 3, 2)}

# Training steps of the full-size model, and how the process that takes them handles its memory.
STEPS = {
    "full": "PyTorch's default",
    "full-kept": "freed memory is kept, as `avemo train` has it",
}

# What is measured where nothing else is asked for: all that a CPU does in seconds.
USUAL = ("clip", "batch", "vqa", *MAPS, *CONVOLUTIONS, "one", *STEPS)

# The cost of one size, the others held: what is varied, and over which values.
CURVES = {
    "B": tuple(4**i for i in range(8)),  # 1 to 16384
    "K": tuple(range(1, 9)),
    "H": (1, 2, 4, 8, 16, 32),
}

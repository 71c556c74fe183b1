"""Audio-visual emotion recognition with adaptive, multi-level factorized bilinear pooling."""

__version__ = "0.1.0"

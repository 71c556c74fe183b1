"""A synthetic corpus of talking faces, the embedded default where licensed corpora cannot be shipped."""

from avemo.synth.corpus import synthesize

__all__ = ["synthesize"]

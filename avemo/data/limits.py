"""The bounds of what one clip may take; errors name them.

`avemo prepare` and `avemo predict` decode in worker processes that hold to all of these.
"""

SHORTEST_SECONDS = 0.2
"""A clip below this holds too few frames for either encoder."""

LONGEST_SECONDS = 120.0
"""What `avemo prepare` takes as one clip, by default; its frames are in memory together."""

WINDOW_SECONDS = 30.0
"""What `avemo predict` looks at together where the model was trained without a longest clip: so a
file of any length takes the memory of one such window."""

LARGEST_PIXELS = 8192 * 4320
"""Of one picture. A decoder holds up to seventeen of them."""

KEPT_BYTES = 16 << 20
"""Of a file's packets that are kept from the first look until they are decoded; a file with more is opened
and read again for each stream."""

MOST_MEMORY = 2 << 30
"""Bytes that a worker may take on top of what it takes when it starts (on Linux; elsewhere a process
cannot be held to that)."""

LONGEST_WORK_SECONDS = 600.0
"""On one clip in `prepare` and one window in `predict`, before its worker is ended."""

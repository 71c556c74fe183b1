"""What one request may take of the server."""

from __future__ import annotations

from dataclasses import dataclass

from avemo.data.limits import LONGEST_SECONDS, SHORTEST_SECONDS


@dataclass(frozen=True)
class Limits:
    """The bounds of requests.

    Attributes:
        megabytes: of an upload.
        seconds: of a clip.
        workers: processes that decode, each one clip at a time.
        waiting: clips that wait for one of them; further ones are refused.
        timeout: seconds that decoding a clip may take.
        batch: paths in one request.

    Raises:
        ValueError: one is out of range.
    """

    megabytes: int = 200
    seconds: float = LONGEST_SECONDS
    workers: int = 2
    waiting: int = 8
    timeout: float = 60.0
    batch: int = 100

    def __post_init__(self) -> None:
        least = {
            "megabytes": 1,
            "seconds": SHORTEST_SECONDS,
            "workers": 1,
            "waiting": 0,
            "timeout": 1,
            "batch": 1,
        }
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ValueError(f"{name} must be at least {value:g}, got {getattr(self, name):g}")

"""Keeping freed memory: after the first times around no page comes from the system."""

import platform
import subprocess
import sys
import textwrap

import pytest

from avemo.training import memory

LINUX = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not LINUX, reason="the allocator is not that of the GNU C library")
def test_memory_is_not_asked_for_twice() -> None:
    """In a process of its own, since the setting stays."""
    script = textwrap.dedent("""
        import resource, sys
        import torch
        from avemo.training.memory import keep_freed_memory
        if sys.argv[1] == "keep":
            assert keep_freed_memory() == keep_freed_memory() == ""
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(2**24)  # 64 MiB, 16384 pages
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        # A small block may take a corner of what was freed, and an aligned block of the same size fits there no
        # longer. That happens a few times (up to 8 were seen) and then no more.
        print(*(faults() for _ in range(40)))
    """)
    counts = {}
    for what in ("keep", "leave"):
        command = [sys.executable, "-c", script, what]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counts[what] = [int(word) for word in done.stdout.split()]
    assert max(counts["keep"][20:]) < 100
    assert min(counts["leave"]) > 1000


def test_other_systems_are_left_alone_and_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # would fail if it were called
    assert memory.keep_freed_memory() == "only the GNU C library can be told to, this is Darwin"

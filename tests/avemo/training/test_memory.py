"""Keeping freed memory: the second time around no page comes from the system."""

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
        faults()
        print(faults())
    """)
    counts = {}
    for what in ("keep", "leave"):
        command = [sys.executable, "-c", script, what]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counts[what] = int(done.stdout)
    assert counts["keep"] < 100
    assert counts["leave"] > 1000


def test_other_systems_are_left_alone_and_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # would fail if it were called
    assert memory.keep_freed_memory() == "only the GNU C library can be told to, this is Darwin"

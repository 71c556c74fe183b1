"""Keeps freed memory, so that the next training step does not have to ask for it again.

A step allocates its activations and gradients anew and frees them. The C library hands large blocks straight
back to the system, and every page of the next step's is then mapped and zeroed again: on the full-size model
about a quarter of a step.
"""

import ctypes
import platform

# Parameters of mallopt, from malloc.h of the GNU C library.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1  # the largest that mallopt takes: 2 GiB
_STEP = 64 * 2**20


def keep_freed_memory() -> str:
    """Tells the C library's allocator to keep what is freed, for the life of the process.

    Memory on the CPU only; the process keeps the most that it ever held at a time. Harmless to call twice.

    Returns:
        Why it does nothing here, or "" where it does.
    """
    library, _ = platform.libc_ver()
    if library != "glibc":
        return f"only the GNU C library can be told to, this is {library or platform.system()}"
    mallopt = ctypes.CDLL(None).mallopt
    # No blocks of their own from the system, growth in large steps, and nothing back below 2 GiB.
    settings = ((_MMAP_MAX, 0), (_TOP_PAD, _STEP), (_TRIM_THRESHOLD, _NEVER))
    if not all(mallopt(parameter, value) for parameter, value in settings):
        return "mallopt refused"
    return ""

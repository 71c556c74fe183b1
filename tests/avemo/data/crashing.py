"""Functions for worker processes that go wrong in every way."""

import os
import signal
import sys
import time


def setup(base):
    def task(item):
        if item == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "exit":
            os._exit(3)
        if item == "hang":
            time.sleep(3600)
        if item == "raise":
            raise OSError("disk full")
        return base + item

    return task


def refusing():
    """Goes wrong as a clip does, and gives the reason as `prepare` does."""
    from avemo.data.reasons import refusal

    def task(item):
        try:
            if item == "eat":
                return len(bytearray(1 << 30))
            return setup(0)(item)
        except Exception as error:
            return str(refusal(error))

    return task


def streaming(seconds=0.0):
    """Counts as an iterator does: to a number, or until it crashes."""

    def task(item):
        crash = isinstance(item, str)
        for i in range(int(item.split()[-1]) if crash else item):
            time.sleep(seconds)
            yield i
        if crash:
            os.kill(os.getpid(), signal.SIGSEGV)

    return task


def imported():
    """Gives the names of all that is imported."""
    return lambda item: sorted(sys.modules)


def broken_setup():
    raise ImportError("no such library")


def crashing_clips(root, features, detector, max_seconds, parts):
    """As `prepare` does it, but the decoder crashes on some files."""
    from avemo.data.prepare import _worker_setup

    task = _worker_setup(root, features, detector, max_seconds, parts)

    def crash(item):
        if "crash" in item[1].path:
            os.kill(os.getpid(), signal.SIGSEGV)
        return task(item)

    return crash


def crashing_decoder(*arguments):
    """As `predict` does it, but the decoder crashes on some files, on some after the first window."""
    from avemo.evaluation.decoding import decoder

    decode = decoder(*arguments)

    def crash(item):
        for window in decode(item):
            if "crash" not in item[1].name or "late" in item[1].name:
                yield window
            if "crash" in item[1].name:
                os.kill(os.getpid(), signal.SIGSEGV)

    return crash


def full_disk(root, features, detector, max_seconds, parts):
    """As `prepare` does it, but nothing can be written."""
    import errno

    from avemo.data.prepare import _worker_setup

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = full
    return _worker_setup(root, features, detector, max_seconds, parts)

"""Functions for worker processes that go wrong in every way."""

import os
import signal
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


def broken_setup():
    raise ImportError("no such library")


def crashing_clips(root, features, detector, max_seconds, parts):
    """As `prepare` does it, but the decoder crashes on some files."""
    from avemo.data.prepare import _worker_setup

    task = _worker_setup(root, features, detector, max_seconds, parts)

    def crash(item):
        if "crash" in item[1]:
            os.kill(os.getpid(), signal.SIGSEGV)
        return task(item)

    return crash

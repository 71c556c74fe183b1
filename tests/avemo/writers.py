"""Another process that writes into a folder."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from avemo.storage import one_writer
with one_writer(Path(sys.argv[1]), sys.argv[2]):
    print("mine", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def hold(folder: Path, activity: str, seconds: float) -> subprocess.Popen[bytes]:
    """Starts a process that holds a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), activity, str(seconds)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@contextmanager
def one_writer_elsewhere(
    folder: Path, activity: str = "avemo prepare"
) -> Iterator[subprocess.Popen[bytes]]:
    """Within it, the folder is held; the process is killed at the end."""
    process = hold(folder, activity, 600)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"mine\n"
        yield process
    finally:
        process.kill()
        process.wait()

"""Another commit of this repository, to be measured beside what is checked out."""

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def exported(commit: str, folder: Path, *parts: str) -> Path:
    """Parts of a commit, in a folder.

    Args:
        commit: any name of it.
        folder: made if needed.
        parts: folders of the repository.
    """
    command = ["git", "-C", str(ROOT), "archive", commit, *parts]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder

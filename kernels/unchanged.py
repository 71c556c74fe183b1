"""Runs a check, unless it has passed on the same files with the same tools: `unchanged.py NAME ... -- ARGUMENTS`.

What a compiler makes of the kernels follows from their sources and its version alone, and takes minutes to see. A check
that passes is entered into `unchanged.json`, which is committed with the files that it is of; as long as neither they
nor the tools nor the check's own arguments change, it need not be run again.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from sources import number

RECORD = Path(__file__).with_suffix(".json")


def key(
    paths: Iterable[str], packages: Iterable[str], tools: Iterable[str], check: Sequence[str]
) -> str:
    """A number over all that decides how a check ends.

    Args:
        paths: files and folders, from the root of the repository.
        packages: of Python; their versions count.
        tools: commands; what they print of their versions counts.
        check: arguments of Python.

    Raises:
        FileNotFoundError: there is no such path or tool.
        importlib.metadata.PackageNotFoundError: there is no such package.
    """
    said = [f"{name} {metadata.version(name)}" for name in packages]
    for tool in tools:
        printed = subprocess.run([tool, "--version"], capture_output=True, check=True, text=True)
        said.append(printed.stdout)
    return hashlib.sha256("\0".join([number(paths), *said, *check]).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns the check's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the check's, in the record")
    parser.add_argument("paths", nargs="+", help="files and folders that decide how it ends")
    parser.add_argument("--package", action="append", default=[], help="of Python, that does, too")
    parser.add_argument("--tool", action="append", default=[], help="a command that does, too")
    given = sys.argv[1:] if arguments is None else arguments
    if "--" not in given:
        parser.error("expected -- and the arguments of Python that run the check")
    split = given.index("--")
    options, check = parser.parse_args(given[:split]), given[split + 1 :]
    now = key(options.paths, options.package, options.tool, check)
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    if record.get(options.name) == now:
        print(f"{options.name}: passed before, and nothing has changed ({RECORD.name})")
        return 0
    status = subprocess.run([sys.executable, *check]).returncode
    if status == 0:
        record[options.name] = now
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())

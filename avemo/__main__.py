"""`python -m avemo` is `avemo`."""

import sys

from avemo.cli import console

if __name__ == "__main__":
    sys.exit(console())

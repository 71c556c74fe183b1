"""`python -m avemo` is `avemo`."""

import sys

from avemo.cli import main

if __name__ == "__main__":
    sys.exit(main())

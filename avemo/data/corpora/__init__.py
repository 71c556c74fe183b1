"""The corpora that `avemo prepare` knows: a file each, and a line each in `registry.py`."""

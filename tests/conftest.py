"""Before anything imports Triton: its interpreter stands in for a GPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"

"""Before anything imports Triton or PyTorch: what both are told through the environment."""

import os

# An interpreter stands in for a GPU.
os.environ["TRITON_INTERPRET"] = "1"
# Tests run in several processes: a thread that waits must not keep a core from the others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

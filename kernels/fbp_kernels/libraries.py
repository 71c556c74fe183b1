"""The names under which PyTorch knows the package's operators: the one place that says them.

A process has one library of a name. Where versions of the package are loaded side by side, as Hugging Face's `kernels`
loads them, each has names of its own: `kernels/hub.py` writes this file anew.
"""

OPERATORS = "fbp_kernels"
NATIVE = "fbp_native"

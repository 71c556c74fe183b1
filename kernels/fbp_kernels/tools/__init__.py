"""Commands for who works on the kernels, not for who calls them: what compilers make of them, and which tiles are best.

`python -m fbp_kernels.tools.resources`, `python -m fbp_kernels.tools.ptxas`, `python -m fbp_kernels.tools.tune`.
Nothing outside this folder imports from it.
"""

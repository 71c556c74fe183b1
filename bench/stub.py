"""A stand-in for the driver's library, at which Triton launches kernels where there is no GPU: nothing runs."""

import os
import subprocess
from pathlib import Path
from typing import Any

LIBRARY = "libcuda.so.1"
SOURCE = Path(__file__).parents[1] / "tests" / "fbp_kernels" / "triton" / "driver_stub.c"


def build(folder: Path) -> dict[str, str]:
    """Compiles the stub into a folder.

    Returns:
        The environment of a process that is to launch kernels at it; its first act has to be `activate`.
    """
    import triton

    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    library = folder / LIBRARY
    command = ["cc", "-shared", "-fPIC", f"-I{include}", str(SOURCE), "-o", str(library)]
    subprocess.run(command, check=True)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return environment | {
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "cache"),  # modules there are linked to the stub
    }


def activate(capability: int = 90) -> "Driver":
    """From now on, this process compiles for devices of a capability and launches at the stub."""
    from triton.runtime import driver

    stub = Driver(capability)
    driver.set_active(stub)
    return stub


class Driver:
    """Triton's own launcher and utilities, without asking PyTorch for a GPU."""

    def __init__(self, capability: int) -> None:
        from triton.backends.nvidia import driver as nvidia

        self._nvidia: Any = nvidia
        self._capability = capability
        self.device = self.stream = 0  # the current ones
        self.utils = nvidia.CudaUtils()
        self.launcher_cls = nvidia.CudaLauncher

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: object = None) -> int:
        return self.stream

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return str(self._nvidia.ty_to_cpp(name))

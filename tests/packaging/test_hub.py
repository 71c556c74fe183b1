"""fbp_kernels in the layout of Hugging Face's hub: their own loader takes it, and their check of ABIs passes it."""

import os
import re
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.packaging.running import run

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the kernels that the installed package was built from: only what names the operators is compiled anew."""
    folder = tmp_path_factory.mktemp("hub")
    built = [path.parent for path in ROOT.glob("build/py3-none-*/CMakeCache.txt")]
    where = ["--build", built[0]] if built else []
    run(sys.executable, ROOT / "kernels" / "hub.py", folder, *where)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment of its own: a package called `kernels` is looked for by others, which act on it."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    run(*pip, "kernels", "kernel-abi-check")
    (site,) = folder.glob("lib/python*/site-packages")
    # Its own packages first; torch and the rest are those of this environment, fbp_kernels among them.
    rest = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})"
    (site / "rest.pth").write_text(rest + "\n")
    return python


def test_the_abi_check_passes_it(repository: Path, python: Path) -> None:
    code = (
        "import sys, kernel_abi_check\n"
        "library = kernel_abi_check.ObjectFile(sys.argv[1])\n"
        "found = [*library.check_manylinux('manylinux_2_28'), *library.check_python_abi('3.9')]\n"
        "sys.exit('\\n'.join(map(str, found)) or None)"
    )
    libraries = list(repository.glob("build/*/_native.so"))
    assert len(libraries) == 1
    run(python, "-c", code, libraries[0])


def test_what_its_metadata_say_of_the_files_is_true(repository: Path, python: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kernels._rust import Digest, DigestAlgorithm, Metadata\n"
        "folder = Path(sys.argv[1])\n"
        "metadata = Metadata.read_from_file(folder / 'metadata.json')\n"
        "metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))\n"
        "print(metadata.name, metadata.backend.backend_type)"
    )
    (variant,) = (repository / "build").iterdir()
    assert run(python, "-c", code, variant) == "fbp-kernels cpu\n"


# The benchmarks' check against float64, of what was loaded in the place of fbp_kernels.
PARITY = """
import sys, kernels, torch
kernel = kernels.get_kernel('us/fbp-kernels', version=0)
assert kernel.__name__.startswith("_fbp_kernels_cpu_"), kernel.__name__
for name, module in list(sys.modules.items()):
    if name.split(".")[0] == kernel.__name__:
        sys.modules["fbp_kernels" + name[len(kernel.__name__):]] = module
torch.ops.fbp_native = getattr(torch.ops, kernel.libraries.NATIVE)
from bench.__main__ import main
status = main(["parity", "--shapes", "tiny", "--backends", "native"])
import fbp_kernels.tf32
assert fbp_kernels is kernel and not hasattr(torch.ops.fbp_kernels, "fbp"), "no other one is there"
sys.exit(status)
"""


def test_it_is_loaded_and_right(repository: Path, python: Path) -> None:
    settings = {
        "HF_HUB_OFFLINE": "1",
        "LOCAL_KERNELS": f"us/fbp-kernels={repository}",
        "PYTHONPATH": os.fspath(ROOT),
    }
    printed = run(python, "-c", PARITY, env=os.environ | settings, cwd=repository)
    assert re.fullmatch(
        r"(\d\d) asked for: \1 right, 0 wrong, 0 left out", printed.splitlines()[-1]
    )


SIDE_BY_SIDE = """
import pathlib, sys, kernels, torch, fbp_kernels
kernel = kernels.get_local_kernel(pathlib.Path(sys.argv[1]))
assert kernel.fbp is not fbp_kernels.fbp
a, v = torch.randn(5, 6), torch.randn(5, 7)
own = kernel.FactorizedBilinearPooling(6, 7, 3, 5, adaptive=True)
call = lambda package: package.fbp(a, v, own.p, own.q, 5, adaptive=True, backend="native")
assert torch.equal(call(kernel), call(fbp_kernels))
call(kernel).sum().backward()
compiled = torch.compile(lambda: call(kernel), fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(), call(kernel))
"""


def test_it_goes_beside_an_installed_fbp_kernels(repository: Path, python: Path) -> None:
    run(python, "-c", SIDE_BY_SIDE, repository, env=os.environ | {"HF_HUB_OFFLINE": "1"})

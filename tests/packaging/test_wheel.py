"""A wheel built here works in an environment of its own; so does an install without a compiler."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.packaging

# What a user would do first: see what runs, call a fused kernel, train a step through accelerate.
TRIAL = """
import torch, fbp_kernels as fk
from pathlib import Path
assert "site-packages" in fk.__file__, fk.__file__
native = [s for s in fk.available_backends() if s.backend == "native" and s.operator == "fbp"][0]
print("native:", native.available, native.reason)
a, v = torch.randn(5, 6), torch.randn(5, 7)
module = fk.FactorizedBilinearPooling(6, 7, 3, 5, adaptive=True)
backend = "native" if native.available else "reference"
z = fk.fbp(a, v, module.p, module.q, 5, adaptive=True, backend=backend)
torch.testing.assert_close(z, fk.reference.fbp(a, v, module.p, module.q, 5, adaptive=True))
z.sum().backward()
print("ran on", backend)
"""


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [os.fspath(part) for part in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, ROOT / "kernels" / "wheel.py", out)
    (built,) = out.glob("*.whl")
    return built


def fresh_environment(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def test_a_wheel_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    assert wheel.name.startswith("avemo-")
    assert "-py3-none-manylinux_2_28_" in wheel.name, "bound to no Python version"
    python = fresh_environment(tmp_path / "env")
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    printed = run(python, "-c", TRIAL, cwd=tmp_path)
    assert "native: True" in printed
    assert "ran on native" in printed
    assert "synth" in run(python.parent / "avemo", "--help", cwd=tmp_path)
    run(python.parent / "avemo", "train", "--config", "small", "--print_config", cwd=tmp_path)


def test_the_license_goes_with_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names), names


def test_without_a_compiler_the_package_installs_and_says_why(tmp_path: Path) -> None:
    # A PATH without compilers, and the build tools of this environment.
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = Path(sysconfig.get_path("scripts"))
    for name in ("cmake", "ninja"):
        (tools / name).symlink_to(scripts / name)
    environment = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX", "LDFLAGS")}
    environment["PATH"] = os.fspath(tools)
    site = tmp_path / "site-packages"
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps",
        "--config-settings=build-dir=" + os.fspath(tmp_path / "build"), "--target", site, ROOT,
        env=environment,
    )  # fmt: skip
    assert not (site / "fbp_kernels" / "_native.so").exists()
    # -S: the editable install of this environment would put itself before any path.
    paths = os.pathsep.join([os.fspath(site), sysconfig.get_path("purelib")])
    printed = run(
        sys.executable, "-S", "-c", TRIAL, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}
    )
    assert "native: False the C++ extension was not built" in printed
    assert "compiler" in printed
    assert "ran on reference" in printed

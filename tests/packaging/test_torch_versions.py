"""The extension's sources and the versions of torch that they are for."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import fbp_kernels

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "kernels" / "torch_versions.py"


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [os.fspath(part) for part in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def versions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torch_versions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_name_the_same_least_version(versions: ModuleType) -> None:
    named = {
        ROOT / "pyproject.toml": r'"torch>=([\d.]+)"',
        ROOT / "CMakeLists.txt": r"find_package\(Torch ([\d.]+)",
        ROOT / "tests" / "cuda_shim" / "CMakeLists.txt": r"find_package\(Torch ([\d.]+)",
    }
    found = {path: set(re.findall(by, path.read_text())) for path, by in named.items()}
    least = versions.LEAST.removesuffix(".0")
    assert set(map(frozenset, found.values())) == {frozenset([least])}, found
    numbers = [tuple(map(int, v.split("."))) for v in versions.VERSIONS]
    assert numbers == sorted(numbers)


@pytest.mark.packaging
def test_the_binding_compiles_with_the_least_versions_headers(versions: ModuleType) -> None:
    printed = run(sys.executable, SCRIPT, "binding")
    sources = len(list((ROOT / "kernels" / "csrc" / "binding").glob("*.cpp")))
    objects = int(re.search(rf"torch {versions.LEAST}: (\d+) objects", printed)[1])
    if shutil.which("nvcc") is None:
        assert objects == sources - 1, "all but the GPU's"
    else:
        assert objects > sources, "some are compiled for both devices"


def made_up_torch(folder: Path, code: str) -> Path:
    """A package called torch, with all that the build looks for."""
    package = folder / "torch"
    (package / "include" / "torch" / "csrc" / "stable").mkdir(parents=True)
    (package / "include" / "torch" / "csrc" / "stable" / "library.h").touch()
    (package / "lib").mkdir()
    (package / "lib" / "libtorch_cpu.so").touch()
    (package / "__init__.py").write_text(code)
    return folder


OLD = """
from types import SimpleNamespace
__version__ = "2.10.0+cpu"
version = SimpleNamespace(cuda=None)
compiled_with_cxx11_abi = lambda: True
"""


@pytest.mark.packaging
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (OLD, "torch was 2.10.0 when the package was built, 2.11 or later is needed"),
        (
            'raise ImportError("libcudart.so.13: no such file")',
            "torch could not be imported when the package was built:"
            " ImportError: libcudart.so.13: no such file",
        ),
    ],
)
def test_the_build_and_the_doctor_say_why_there_is_no_extension(
    versions: ModuleType, tmp_path: Path, code: str, reason: str
) -> None:
    build, site = tmp_path / "build", tmp_path / "site"
    cmake = versions.tool("cmake")
    environment = os.environ | {"PYTHONPATH": os.fspath(made_up_torch(tmp_path / "old", code))}
    told = run(
        cmake, "-S", ROOT, "-B", build, "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={versions.tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}",
        env=environment,
    )  # fmt: skip
    assert f"fbp_kernels is built without its C++ extension: {reason}" in " ".join(told.split())
    shutil.copytree(
        ROOT / "kernels" / "fbp_kernels", site / "fbp_kernels",
        ignore=shutil.ignore_patterns("*.so", "*_missing.txt"),
    )  # fmt: skip
    run(cmake, "--build", build)  # what needs no torch is there
    run(cmake, "--install", build, "--prefix", site)
    assert (site / "avemo" / "data" / "_cascade.so").is_file()
    # -S: the editable install of this environment would put itself before any path.
    paths = os.pathsep.join([os.fspath(site), sysconfig.get_path("purelib")])
    report = run(
        sys.executable, "-S", "-m", "fbp_kernels", "doctor",
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert f"C++ extension: the C++ extension was not built: {reason}\n" in report


@pytest.mark.packaging
def test_what_is_copied_to_another_version_is_all_that_parity_needs(
    versions: ModuleType, tmp_path: Path
) -> None:
    versions.copy_parts(tmp_path)
    # -S: the editable install of this environment would lend what was not copied.
    paths = os.pathsep.join(
        map(os.fspath, (tmp_path, tmp_path / "kernels", sysconfig.get_path("purelib")))
    )
    printed = run(
        sys.executable, "-S", "-m", "bench", "parity", "--shapes", "tiny", "--backends", "triton",
        "--dtypes", "float32", "--operators", "power_normalize",
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert "2 asked for: 2 right" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' symbols have no versions")
def test_what_a_library_asks_of_a_system_is_read(versions: ModuleType) -> None:
    (extension,) = (p for folder in fbp_kernels.__path__ for p in Path(folder).glob("_native.so"))
    asked = versions.asked_symbols(extension)
    assert {"GLIBC", "GLIBCXX"} <= set(asked) <= set(versions.NEWEST_SYMBOLS)
    assert (2, 2) <= asked["GLIBC"] < (3,)  # x86-64 begins with 2.2.5


def test_what_was_right_is_not_run_again_before_a_file_changes(
    versions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    broken = {"2.12.0"}

    def run_in(version: str, builds: dict[str, Path], folder: Path) -> list[str]:
        ran.append(version)
        if version in broken:
            raise RuntimeError("does not load")
        return ["parity: all right", "registration: passed"]

    files = tmp_path / "files"
    files.mkdir()
    (files / "kernel.py").write_text("1")
    (files / "kernel.so").write_text("1")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "PARTS", ("files",))
    monkeypatch.setattr(versions, "WORK", tmp_path)
    monkeypatch.setattr(versions, "build_both", lambda version: tmp_path / version)
    monkeypatch.setattr(versions, "run_in", run_in)
    both = ["2.11.0", "2.12.0"]
    assert versions.try_all(both) == 1
    assert ran == both
    broken.clear()
    assert versions.try_all(both) == 0
    assert ran == [*both, "2.12.0"]
    (files / "kernel.so").write_text("2")  # built, not written
    assert versions.try_all(both) == 0
    assert ran == [*both, "2.12.0"]
    (files / "kernel.py").write_text("2")
    assert versions.try_all(both) == 0
    assert ran == [*both, "2.12.0", *both]


def test_a_library_for_many_systems_is_not_bound_to_a_new_one_or_to_python(
    versions: ModuleType,
) -> None:
    import yaml._yaml

    with pytest.raises(RuntimeError, match=r"is bound to a version of Python, by _?Py"):
        versions.check_symbols(Path(yaml._yaml.__file__), versions.MANYLINUX_2_28)
    own = next(p for f in fbp_kernels.__path__ for p in Path(f).glob("_native.so"))
    with pytest.raises(RuntimeError, match=r"_native.so asks for \w+ "):
        versions.check_symbols(
            own, {"GLIBC": (2, 2), "GLIBCXX": (3, 4, 1), "CXXABI": (1,), "GCC": (1,)}
        )


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"), reason="of Linux, and needs a compiler"
)
def test_what_looks_for_libraries_loads_on_older_systems(
    versions: ModuleType, tmp_path: Path
) -> None:
    """Whatever system it is compiled on: glibc 2.34 has these functions under a new version."""
    header = ROOT / "kernels" / "csrc" / "binding" / "older_systems.h"
    source, library = tmp_path / "looks.cpp", tmp_path / "looks.so"
    source.write_text(
        f'#include <dlfcn.h>\n#include "{header}"\n'
        'extern "C" void* look() { return dlsym(dlopen("libm.so.6", RTLD_LAZY), "cos"); }\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    versions.check_symbols(library, versions.MANYLINUX_2_28)
    look = ctypes.CDLL(str(library)).look
    look.restype = ctypes.c_void_p
    assert look() == ctypes.cast(ctypes.CDLL("libm.so.6").cos, ctypes.c_void_p).value

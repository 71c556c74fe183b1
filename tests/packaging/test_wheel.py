"""A wheel built here works in an environment of its own; so does an install without a compiler."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.avemo.data.media_files import talking_head, tone, write_media
from tests.avemo.serve.running import make_checkpoint
from tests.docs.pages import blocks
from tests.packaging.running import run

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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, ROOT / "kernels" / "wheel.py", out)
    (built,) = out.glob("*.whl")
    return built


PAGE = "docs/install.md"


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment that the page's first commands have made, with pinned packages."""
    folder = tmp_path_factory.mktemp("fresh")
    make, install, *_ = commands()
    run(sys.executable, *make[1:], cwd=folder)
    program, word, given = install
    assert given == f"{wheel.name}[serve]"
    pins = ("--quiet", "-c", ROOT / "constraints.txt")
    run(folder / program, word, *pins, f"{wheel}[serve]", cwd=folder)
    return folder


def commands() -> list[list[str]]:
    """Of the page's first block."""
    return [shlex.split(line) for line in blocks(PAGE)[0].commands]


def test_a_wheel_works_in_a_fresh_environment(wheel: Path, fresh: Path) -> None:
    assert wheel.name.startswith("avemo-")
    assert "-py3-none-manylinux_2_28_" in wheel.name, "bound to no Python version"
    printed = run(fresh / "avemo-env/bin/python", "-c", TRIAL, cwd=fresh)
    assert "native: True" in printed
    assert "ran on native" in printed
    avemo = fresh / "avemo-env/bin/avemo"
    assert "synth" in run(avemo, "--help", cwd=fresh)
    run(avemo, "train", "--config", "small", "--print_config", cwd=fresh)


def test_the_page_leads_to_a_prediction_of_a_phones_video(fresh: Path) -> None:
    """With an untrained model in the place of the demo's, whose training has tests of its own."""
    (doctor, demo, predict, serve) = commands()[2:]
    assert "C++ extension: loaded" in run(fresh / doctor[0], *doctor[1:], cwd=fresh)
    assert demo[1:] == ["demo"]
    model, video = fresh / predict[2], fresh / predict[3]
    model.parent.mkdir(parents=True, exist_ok=True)
    make_checkpoint(model)
    # Filmed upright: stored on its side, with a note how to turn it.
    sideways = np.rot90(talking_head(75), 1, axes=(1, 2)).copy()
    write_media(video, sideways, tone(3.0, rate=44100), rate=44100, rotation=-90)
    printed = run(fresh / predict[0], *predict[1:], cwd=fresh)
    assert video.name in printed
    assert "%" in printed
    assert (fresh / "predictions" / "IMG_0042.svg").is_file()
    port = free_port()
    started = subprocess.Popen([fresh / serve[0], *serve[1:], "--port", str(port)], cwd=fresh)
    try:
        answer = ask(f"http://127.0.0.1:{port}/api/predictions?name=phone", video.read_bytes())
    finally:
        started.terminate()
        assert started.wait(60) in (0, -signal.SIGTERM)
    assert answer["emotion"] in printed.split()[1:], (answer, printed)
    best = max(answer["probabilities"], key=answer["probabilities"].__getitem__)
    assert f"{answer['probabilities'][best]:6.1%}".strip() in printed


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def ask(address: str, content: bytes) -> dict[str, Any]:
    """What a server answers, as soon as it has started."""
    for _ in range(1200):
        try:
            with urllib.request.urlopen(urllib.request.Request(address, content)) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:  # not yet
            time.sleep(0.1)
    raise AssertionError(f"nobody answers at {address}")


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

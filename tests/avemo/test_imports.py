"""What slow imports do to the collection of garbage, and what is said where a package is not there."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from avemo import cli, imports
from avemo.data.engines import ray_all
from avemo.data.objects import open_objects
from avemo.models import ModelConfig
from avemo.models.config import AudioEncoderConfig
from avemo.models.lbp_top_svm import lbp_top
from avemo.models.transformer import resolved
from avemo.serve.server import serve

WAVLM = ModelConfig(audio=AudioEncoderConfig(encoder="microsoft/wavlm-base"))


@pytest.fixture
def collection(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that is not a command's own, now and afterwards."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(imports, "_own_process", False)
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_all_packages_that_an_extra_would_bring_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "csv"):
        monkeypatch.setitem(sys.modules, name, None)
    imports.needs("it", "gc", "os", extra="some")
    with pytest.raises(ValueError, match=r"^it needs csv, json: pip install 'avemo\[some\]'$"):
        imports.needs("it", "csv", "gc", "json", extra="some")


@pytest.mark.parametrize(
    ("package", "call", "said"),
    [
        (
            "ray",
            lambda: next(ray_all([1], lambda: len, (), workers=1, timeout=9)),
            r"^engine ray needs ray: .*\[ray\]",
        ),
        ("obstore", lambda: open_objects("s3://b/c"), r"^s3://b/c needs obstore: .*\[streams\]"),
        (
            "skimage",
            lambda: lbp_top(torch.zeros(1, 3, 8, 8), torch.tensor([3])),
            r"skimage: .*\[baseline\]",
        ),
        (
            "transformers",
            lambda: resolved(WAVLM),
            r"^an encoder of another library needs transformers: .*\[transformers\]",
        ),
        ("pebble", lambda: serve(Path("none")), r"^the server needs pebble: .*\[serve\]"),
    ],
)
def test_what_has_an_extra_says_so(
    package: str, call: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.usefixtures("collection")
def test_nothing_is_collected_while_much_is_imported() -> None:
    with imports.without_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0, "what is here may become garbage later"


@pytest.mark.usefixtures("collection")
def test_a_command_of_its_own_never_looks_through_what_it_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os._exit", lambda status: None)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    monkeypatch.setattr("sys.argv", ["avemo", "systems"])
    cli.console()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted on Linux")
@pytest.mark.parametrize(("said", "expected"), [(None, 1), ("2", 2)])
def test_no_thread_of_numpy_takes_a_processor_from_the_decoder(
    said: str | None, expected: int
) -> None:
    code = (
        "import os; from avemo.imports import in_a_process_of_its_own as own; own()\n"
        "import numpy; print(len(os.listdir('/proc/self/task')))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    if said is not None:
        environment["OPENBLAS_NUM_THREADS"] = said
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    # As many as were asked for, where the machine has as many processors.
    assert int(done.stdout) == min(expected, len(os.sched_getaffinity(0)))


OWN = "from avemo import imports; imports.in_a_process_of_its_own()\n"
PUT_OFF = OWN + "imports.put_off_kernels_without_data()\nimport sys, torch\n"
CHECK = "loaded = 'torch._decomp' in sys.modules; print(loaded)\n"


def said_by(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "then",
    [
        "imports.all_of_pytorch()",
        "from torch._meta_registrations import meta_bmm",
        "from avemo.models.transformer import _library; _library()",
        "from avemo.models.networks import library_of\n"
        "try: library_of('timm:any')\nexcept ValueError: pass",
    ],
)
def test_kernels_for_tensors_without_data_come_when_they_are_asked_for(then: str) -> None:
    use = (
        "torch.distributed.is_available()\n"
        "with torch.device('meta'):\n"
        "    x = torch.ones(2, 3, 4)\n"
        "    print(tuple(torch.linalg.cross(x[..., :3], x[..., 1:]).shape))\n"
        "    print(*torch.nn.Conv1d(3, 5, 2)(x).shape)\n"
    )
    assert said_by(f"{PUT_OFF}{CHECK}{then}\n{CHECK}{use}")[:2] == ["False", "True"]


def test_they_are_put_off_in_a_process_of_our_own_alone_and_before_pytorch() -> None:
    assert said_by(PUT_OFF.replace(OWN, "from avemo import imports\n") + CHECK) == ["True"]
    late = OWN + "import sys, torch\nimports.put_off_kernels_without_data()\n"
    assert said_by(f"{late}{CHECK}torch._meta_registrations.meta_bmm") == ["True"]


def test_a_pytorch_without_them_is_none_the_worse() -> None:
    other = PUT_OFF.replace(
        "imports.put", "imports._WITHOUT_DATA = ('torch._there_is_none',)\nimports.put"
    )
    assert said_by(f"{other}{CHECK}imports.all_of_pytorch()") == ["True"]

"""CONTRIBUTING.md does what it says: its steps are done in a copy of the repository, and what comes of them is used."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fbp_kernels
from tests.avemo.data.media_files import write_clip

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
FOLDERS = ("avemo", "bench", "kernels/fbp_kernels", "tests/fbp_kernels")

STEP = re.compile(
    r"(?:New file|At the end of|In) `(?P<path>[^`]+)`(?: after `(?P<after>[^`]+)`)?:\n\n"
    r" *```\w+\n(?P<code>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
RUN = re.compile(r"Run:\n\n *```sh\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def _section(title: str) -> str:
    return re.split(r"^## ", TEXT.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def _follow(title: str, checkout: Path) -> list[str]:
    """Does what a section says to files; gives their paths."""
    steps = list(STEP.finditer(_section(title)))
    assert sum(_section(title).count(f"```{kind}") for kind in ("python", "csv", "yaml")) == len(
        steps
    )
    for step in steps:
        path, after = checkout / step["path"], step["after"]
        indent = re.match(" *", step["code"].lstrip("\n"))
        assert indent
        code = "".join(line[3:] or "\n" for line in step["code"].splitlines(keepends=True))
        if after:
            lines = path.read_text("utf-8").splitlines(keepends=True)
            at = [i for i, line in enumerate(lines) if line.rstrip("\n") == after]
            assert at, f"{path} has no line {after!r}"
            lines.insert(at[0] + 1, code)
            path.write_text("".join(lines), "utf-8")
        elif step[0].startswith("New"):
            assert not path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, "utf-8")
        else:
            path.write_text(path.read_text("utf-8") + code, "utf-8")
    return [step["path"] for step in steps]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, with the libraries that are built from them."""
    for folder in FOLDERS:
        left = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=left)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in fbp_kernels.__path__:
        for library in Path(folder).glob("_native*"):
            shutil.copy(library, tmp_path / "kernels" / "fbp_kernels")
    return tmp_path


# An editable install finds its packages before the path is looked at, by an object among Python's own classes.
ALONE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if isinstance(f, type)]\n"


def _python(checkout: Path, code: str) -> str:
    """What code prints in the copy, with its packages in place of those that are installed."""
    path = os.pathsep.join(map(str, (checkout / "kernels", checkout)))
    done = subprocess.run(
        [sys.executable, "-c", ALONE + code],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


OPERATOR = """
import torch
import fbp_kernels as fk
from bench.operators import OPERATORS
from bench.test_gate import PLANS
from tests.fbp_kernels.cases import assert_case, over_examples
assert fk.__file__.startswith({root!r}), fk.__file__
assert ("gate", "native") in [(s.operator, s.backend) for s in fk.available_backends()]
over_examples("gate", "native", lambda case: assert_case(case, "native"))
x, y = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
call = lambda x, y: fk.gate(x, y, backend="native")
assert isinstance(call(x, y), torch.Tensor)
assert torch.autograd.gradcheck(call, (x, y), check_forward_ad=True, check_batched_grad=True)
torch.library.opcheck(torch.ops.fbp_kernels.gate_forward.default, (x.detach(), y.detach(), "native"))
torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="eager")(x, y), call(x, y))
assert "gate" in OPERATORS and PLANS is not None
"""


@pytest.mark.slow
def test_add_an_operator(checkout: Path) -> None:
    changed = _follow("Add an operator", checkout)
    new = [path for path in changed if path.endswith("gate.py")]
    assert new == [
        "kernels/fbp_kernels/ops/gate.py",
        "bench/operators/gate.py",
        "bench/test_gate.py",
    ]
    _python(checkout, OPERATOR.format(root=str(checkout)))
    doctor = "from fbp_kernels.doctor import report; print(report())"
    assert re.search(r"^ +gate +native +yes", _python(checkout, doctor), re.M)
    form = [sys.executable, "-m", "ruff"]
    paths = [str(checkout / path) for path in changed]
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [*form, *command, *paths], capture_output=True, text=True, cwd=checkout
        )
        assert done.returncode == 0, done.stdout


SYSTEM = """
import torch
from avemo.models import ModelConfig, build_model
from avemo.models.cnn_lstm import CNNLSTM
from avemo.systems import systems
from avemo.training.config import from_dict
import yaml
system = systems()["ag_fbp_cnn_lstm"]
assert system.summary.startswith("AG-FBP of the face") and system.streams == ("audio", "video")
combined = from_dict(ModelConfig, yaml.safe_load(system.config.read_text("utf-8"))["model"])
batch = (torch.randn(2, 200, 90), torch.tensor([90, 83]), torch.randn(2, 5, 64, 64), torch.tensor([5, 4]))
for config in (combined, ModelConfig("hadamard")):
    model = build_model(config, bins=200, face_size=64, classes=3).eval()
    out = model(*batch)
    assert out.logits.shape == (2, 3) and out.audio_attention is not None and out.video_attention is not None
    assert isinstance(model.audio.encoder, CNNLSTM) == (config is combined)
a, v = model.audio(*batch[:2]).vector, model.video(*batch[2:]).vector
product = (a @ model.fusion.audio.weight.T) * (v @ model.fusion.video.weight.T)
torch.testing.assert_close(out.logits, model.classifier(model.norms[0](product)))
"""


def test_add_a_system(checkout: Path) -> None:
    changed = _follow("Add a system", checkout)
    assert changed[0] == "avemo/configs/systems/ag_fbp_cnn_lstm.yaml"
    _python(checkout, SYSTEM)


@pytest.mark.slow
def test_add_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avemo.cli import main

    monkeypatch.chdir(tmp_path)
    section = _section("Add a corpus")
    (manifest,) = _follow("Add a corpus", tmp_path)
    for number, row in enumerate((tmp_path / manifest).read_text().splitlines()[1:]):
        write_clip(tmp_path / "corpus" / row.split(",")[0], hertz=300 + 100 * number, first=number)
    commands = textwrap.dedent("".join(RUN.findall(section))).splitlines()
    assert [shlex.split(c)[1] for c in commands] == ["prepare", "train", "evaluate"]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "runs/mine/evaluation-test/scores.json").is_file()


def test_what_the_map_names_is_there() -> None:
    paths = re.findall(r"`((?:kernels|tests|bench)/[^`]+)`", _section("Where things are"))
    assert len(paths) > 25
    assert not [path for path in paths if not (ROOT / path).exists()]
    for operator in fbp_kernels.ops.__all__:
        assert f"`{operator}`" in _section("Where things are")

"""Work in shares and on Ray: the bytes of one process, and a lost worker costs the clip it was at."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avemo.data import prepare as prepare_module
from avemo.data.cache import ClipCache
from avemo.data.engines import ENGINES, EngineName
from avemo.data.prepare import Job, parse_job, prepare
from avemo.data.worker import WorkerDeath
from avemo.storage import FolderInUseError
from tests.avemo.data import crashing
from tests.avemo.data.media_files import write_clip
from tests.avemo.writers import one_writer_elsewhere

SETTINGS: dict[str, Any] = {"face_size": 32, "bins": 40}
CLIPS = 7


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and a file that is none, in shards of two rows."""
    root = tmp_path_factory.mktemp("corpus")
    rows = ["path,label,speaker,split"]
    for i in range(CLIPS):
        write_clip(root / f"{i}.mp4", hertz=200 * (i + 1), first=i)
        rows.append(f"{i}.mp4,{('sad', 'happy')[i % 2]},s{i},{('train', 'val', 'test')[i % 3]}")
    (root / "text.mp4").write_text("this is no film")
    rows.insert(3, "text.mp4,sad,s9,train")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_SHARD_ROWS", 2)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache as one process makes it."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "_SHARD_ROWS", 2)
        prepare("manifest", corpus, out=out, workers=1, **SETTINGS)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("done", [3, 1, 0])
def test_shares_put_together_are_the_bytes_of_one_process(
    done: int, corpus: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where some have not run: the last call does what is missing."""
    for number in range(done):
        report = prepare(
            "manifest", corpus, out=tmp_path, workers=1, shard=f"{number + 1}/3", **SETTINGS
        )
        assert report.done + sum(report.errors.values()) == (4, 2, 2)[number]
        assert not (tmp_path / "index.json").exists()
    report = prepare("manifest", corpus, out=tmp_path, workers=1, **SETTINGS)
    assert report.resumed == (0, 4, 6, 8)[done]
    assert (report.done, report.errors) == (CLIPS, {"not a media file": 1})
    assert contents(tmp_path) == contents(whole)
    assert "prepared anew" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_share_that_was_interrupted_is_taken_over(
    corpus: Path, whole: Path, tmp_path: Path
) -> None:
    """In the middle of a shard; and its own repetition goes on, too."""
    prepare("manifest", corpus, out=tmp_path, workers=1, shard="1/2", **SETTINGS)
    job = tmp_path / "jobs" / "1-of-2"
    (job / "parts" / "shard-00000.json").unlink()
    (job / "shard-00000.safetensors").unlink()
    prepare_module._save_clips(job / "parts" / "000000000.safetensors", [ClipCache(whole)[0]])
    (job / "parts" / "000000001.safetensors.9.part").write_bytes(b"half")
    again = Path(shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-again")))
    assert prepare("manifest", corpus, out=tmp_path, workers=1, **SETTINGS).resumed == 3
    assert contents(tmp_path) == contents(whole)
    report = prepare("manifest", corpus, out=again, workers=1, shard="1/2", **SETTINGS)
    assert report.resumed == 3
    prepare("manifest", corpus, out=again, workers=1, **SETTINGS)
    assert contents(again) == contents(whole)


@pytest.mark.slow
def test_shares_that_do_not_fit_are_refused(corpus: Path, tmp_path: Path) -> None:
    assert parse_job("3/8") == Job(2, 8)
    for text in ("0/8", "9/8", "3", "a/b", "-1/2", "1/0", "/"):
        with pytest.raises(ValueError, match=r"shard must be like 3/8, from 1/8 to 8/8, got"):
            prepare("manifest", corpus, out=tmp_path, shard=text, **SETTINGS)
    prepare("manifest", corpus, out=tmp_path, workers=1, shard="1/8", **SETTINGS)
    with pytest.raises(ValueError, match=r"jobs/1-of-8 has a cache made with other settings: bins"):
        prepare("manifest", corpus, out=tmp_path, workers=1, **SETTINGS | {"bins": 20})
    with (
        one_writer_elsewhere(tmp_path / "jobs" / "1-of-8"),
        pytest.raises(FolderInUseError, match=r"jobs/1-of-8 is being written by"),
    ):
        prepare("manifest", corpus, out=tmp_path, workers=1, **SETTINGS)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of one node on this machine, for all tests here; more can be added to it."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_ray_gives_the_bytes_of_one_process(corpus: Path, whole: Path, tmp_path: Path) -> None:
    prepare("manifest", corpus, out=tmp_path, workers=2, engine="ray", **SETTINGS)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_lost_worker_of_ray_costs_the_clip_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "_worker_setup", crashing.crashing_clips)
    rows = ["path,label,speaker,split"]
    for name, label, split in (
        ("a", "sad", "test"),
        ("crash", "sad", "val"),
        ("b", "sad", "train"),
    ):
        write_clip(tmp_path / f"{name}.mp4")
        rows.append(f"{name}.mp4,{label},{name},{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    report = prepare("manifest", tmp_path, out=tmp_path / "cache", workers=1, engine="ray")
    assert (report.done, report.errors) == (2, {"decoder crashed": 1})
    assert (
        'crash.mp4,"decoder crashed: the process ended: '
        in (tmp_path / "cache" / "errors.csv").read_text()
    )
    assert [clip.split for clip in ClipCache(tmp_path / "cache").clips] == ["test", "train"]


def _held_back(node: str, lost: Path) -> Callable[[Any], Any]:
    """Tells in which process of a node an item was worked on; the others wait until that node is lost."""
    from ray import get_runtime_context

    def task(item: int) -> int | None:
        if get_runtime_context().get_node_id() == node:
            return os.getpid()
        while not lost.exists():
            time.sleep(0.05)
        return None

    return task


@pytest.mark.slow
def test_a_lost_node_of_ray_costs_the_clip_it_was_at(ray: Any, tmp_path: Path) -> None:
    """The others go on, though the cluster has no room for another worker."""
    node, lost, items = ray.add_node(num_cpus=1), tmp_path / "lost", list(range(20))
    work = ENGINES["ray"](items, _held_back, (node.node_id, lost), workers=3, timeout=60.0)
    found = {}
    for item, result in work:
        found[item] = result
        if isinstance(result, WorkerDeath):
            lost.touch()
        elif result is not None and node in ray.list_all_nodes():
            ray.remove_node(node, allow_graceful=False)
            with suppress(ProcessLookupError):  # it ends with its node
                os.kill(result, signal.SIGKILL)
    assert sorted(found) == items
    (death,) = (result for result in found.values() if isinstance(result, WorkerDeath))
    assert not death.late


def _square(base: int) -> Callable[[Any], Any]:
    def task(item: Any) -> Any:
        if item == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "hang":
            time.sleep(60)
        if item == "rest":
            time.sleep(1)
        if item == "fail":
            raise ValueError("a mistake of the function")
        if item == "memory":
            try:
                np.ones(1 << 30)
            except MemoryError:
                return "no memory left"
        return base + item * item if isinstance(item, int) else item

    return task


def _broken_setup() -> Callable[[Any], Any]:
    raise OSError("no setup")


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_engines_do_the_same(engine: EngineName) -> None:
    """A worker that is killed or hangs costs its item; a mistake of the function ends the run."""
    work = ENGINES[engine]
    items = [1, "die", 2, "hang", 3, "memory", 4]
    found = dict(work(items, _square, (10,), workers=2, timeout=10.0, memory=1 << 30))
    assert {item: found[item] for item in (1, 2, 3, 4)} == {1: 11, 2: 14, 3: 19, 4: 26}
    assert found["memory"] == "no memory left"
    assert isinstance(found["die"], WorkerDeath)
    assert not found["die"].late
    assert isinstance(found["hang"], WorkerDeath)
    assert found["hang"].late
    with pytest.raises(RuntimeError, match=r"a worker process failed: .*a mistake of the function"):
        list(work([1, "fail"], _square, (10,), workers=1, timeout=30.0))
    with pytest.raises(RuntimeError, match="could not start"):
        list(work([1], _broken_setup, (), workers=1, timeout=30.0))
    assert list(work([], _square, (10,), workers=2, timeout=1.0)) == []
    slow = work([1, "rest"], _square, (10,), workers=2, timeout=2.0)
    found = dict([next(slow)])
    time.sleep(4)  # the caller's time is not the work's
    assert found | dict(slow) == {1: 11, "rest": "rest"}

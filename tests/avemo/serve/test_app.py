"""The API: the same answers as `avemo predict`, bounded, and nothing told that is nobody's business."""

import asyncio
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from avemo.cli import main
from avemo.data.reasons import REASONS, MediaError
from avemo.evaluation.decoding import Finished
from avemo.evaluation.predict import predict
from avemo.serve import app, decoding
from avemo.serve.limits import Limits
from avemo.serve.service import Service
from tests.avemo.data.media_files import no_face, tone, write_media
from tests.avemo.serve import running


@pytest.fixture(scope="module")
def client(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("root")
    with TestClient(app.create_app(service, root=root, hosts=running.HOSTS)) as made:
        made.root = root  # type: ignore[attr-defined]
        yield made


def send(client: TestClient, path: Path, name: str = "mine.mp4") -> httpx.Response:
    return client.post("/api/predictions", params={"name": name}, content=path.read_bytes())


def test_the_same_as_predict(
    client: TestClient, checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    (expected,) = predict(checkpoint, [str(clip)], out=tmp_path)
    answer = send(client, clip, "<b>ünì&.mp4")
    assert answer.status_code == 200
    found = answer.json()
    assert found["probabilities"] == expected.probabilities
    assert list(found["probabilities"]) == list(expected.probabilities)
    assert found["emotion"] == next(iter(expected.probabilities))
    assert found["name"] == "<b>ünì&.mp4"
    assert expected.picture is not None
    assert found["picture"].replace(
        "&lt;b&gt;ünì&amp;.mp4", "clip.mp4"
    ) == expected.picture.read_text("utf-8")


def test_a_clip_that_cannot_be_used(client: TestClient, tmp_path: Path) -> None:
    faceless = write_media(tmp_path / "f.mp4", no_face(25), tone(1.0))
    answer = send(client, faceless)
    assert answer.status_code == 422
    found = answer.json()
    assert (found["name"], found["reason"], found["advice"]) == (
        "mine.mp4",
        "no face",
        REASONS["no face"],
    )


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_no_path_of_the_server_is_told(client: TestClient, content: bytes) -> None:
    answer = client.post("/api/predictions", content=content)
    assert answer.status_code == 422
    assert tempfile.gettempdir() not in answer.text
    assert "avemo-" not in answer.text
    assert ".upload" not in answer.text


def test_a_message_that_has_the_place_of_a_file(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_read", _telling)
    answer = client.post("/api/predictions", params={"name": "mine.mp4"}, content=b"x").json()
    assert (answer["reason"], answer["details"]) == ("unexpected error", "OSError: mine.mp4 in ")


def _telling(path: Path, *_: object) -> list[Finished]:
    return [Finished(MediaError("unexpected error", f"OSError: {path} in {path.parent}"))]


def test_uploads_are_deleted(
    client: TestClient, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken = []
    original = Service.predict

    async def noting(self: Service, path: Path, name: str) -> object:
        taken.append(path.read_bytes())
        assert path.parent == tmp_path
        return await original(self, path, name)

    monkeypatch.setattr(Service, "predict", noting)
    assert send(client, clip).status_code == 200
    assert client.post("/api/predictions", content=b"nothing").status_code == 422
    assert taken == [clip.read_bytes(), b"nothing"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("announced", [True, False])
def test_too_large(client: TestClient, announced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the request says so or not; then no more than the bound is taken. What is as large as that is taken."""
    written = []
    original = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda *a: written.append(a) or original(*a))

    def sent(size: int) -> bytes | Iterator[bytes]:
        pieces = (bytes(min(9999, size - i)) for i in range(0, size, 9999))
        return bytes(size) if announced else pieces

    answer = client.post("/api/predictions", content=sent(3_000_001))
    assert answer.status_code == 413
    assert "3 MB" in answer.json()["detail"]
    assert len(written) == (0 if announced else 1)
    assert client.post("/api/predictions", content=sent(3_000_000)).status_code == 422


def test_too_long(checkpoint: Path, clip: Path) -> None:
    with running.service(checkpoint, workers=1, seconds=1.0) as made:
        found = send(TestClient(app.create_app(made, hosts=running.HOSTS)), clip).json()
    assert (found["reason"], found["details"]) == ("too long", "more than 1 s")


def test_by_path(client: TestClient, clip: Path, tmp_path: Path) -> None:
    root: Path = client.root  # type: ignore[attr-defined]
    (root / "below").mkdir(exist_ok=True)
    (root / "below" / "a.mp4").write_bytes(clip.read_bytes())
    (root / "link.mp4").symlink_to(clip)
    names = ["below/a.mp4", "none.mp4", "../clip.mp4", str(clip), "link.mp4", "a\0b", ""]
    answer = client.post("/api/paths", json={"paths": names})
    results = answer.json()["results"]
    assert [r["name"] for r in results] == names
    assert results[0]["probabilities"] == send(client, clip).json()["probabilities"]
    outside = "path outside of the root"
    assert [r.get("reason") for r in results] == [
        None, "no such file", outside, outside, outside, outside, "not a regular file",
    ]  # fmt: skip
    assert str(root) not in answer.text
    assert client.post("/api/paths", json={"paths": ["x"] * 101}).status_code == 413


def test_paths_need_a_root(service: Service) -> None:
    client = TestClient(app.create_app(service, hosts=running.HOSTS))
    assert client.post("/api/paths", json={"paths": ["a.mp4"]}).status_code == 404
    assert client.get("/api/about").json()["paths"] is False


def test_token(service: Service, clip: Path) -> None:
    """None, another one, one that begins alike or goes on: for each that may be asked."""
    client = TestClient(app.create_app(service, token="sëcret", root=clip.parent, hosts=["*"]))
    given = ["Bearer other", "Bearer sëcre", "Bearer sëcrets", "Bearer ", "sëcret"]
    for header in ({}, *({"Authorization": text.encode()} for text in given)):
        for answer in (
            client.get("/api/about", headers=header),
            client.post("/api/predictions", content=clip.read_bytes(), headers=header),
            client.post("/api/paths", json={"paths": [clip.name]}, headers=header),
        ):
            assert answer.status_code == 401
    good = {"Authorization": "Bearer sëcret".encode()}
    assert client.get("/api/about", headers=good).status_code == 200
    assert client.get("/").status_code == 200  # where it can be entered


def test_other_names_of_this_machine_are_refused(client: TestClient) -> None:
    assert client.get("/api/about", headers={"Host": "elsewhere.example"}).status_code == 400


def test_overload_is_refused_and_nothing_else_lost(checkpoint: Path, clip: Path) -> None:
    """As many as fit are answered; the others are told to try again, before their clips are looked at."""
    with (
        running.service(checkpoint, workers=1, waiting=1) as small,
        running.running(small) as address,
    ):
        answers = asyncio.run(_at_once(address, clip.read_bytes(), 8))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 2
        assert all(int(a.headers["Retry-After"]) > 0 for a in answers if a.status_code == 429)
        assert small.under_way == 0
        assert asyncio.run(_at_once(address, clip.read_bytes(), 1))[0].status_code == 200


async def _at_once(address: str, content: bytes, count: int) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=address, timeout=180, trust_env=False) as client:
        requests = (client.post("/api/predictions", content=content) for _ in range(count))
        return await asyncio.gather(*requests)


def test_a_process_that_dies_or_hangs_costs_its_clip(
    checkpoint: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next clip is answered as ever."""
    with running.service(checkpoint, workers=1, timeout=5) as made:
        client = TestClient(app.create_app(made, hosts=running.HOSTS))
        good = send(client, clip).json()
        for task, reason in ((_die, "decoder crashed"), (_hang, "too much time")):
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "_read", task)
                assert send(client, clip).json()["reason"] == reason
            assert send(client, clip).json() == good


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(*_: object) -> None:
    time.sleep(60)


def test_what_works_on_a_clip_does_not_keep_others_from_the_page(
    checkpoint: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_read", functools.partial(_wait_for, tmp_path / "end"))
    with (
        running.service(checkpoint, workers=1) as made,
        running.running(made) as address,
    ):
        slow = threading.Thread(target=lambda: asyncio.run(_at_once(address, clip.read_bytes(), 1)))
        slow.start()
        while not made.under_way:
            time.sleep(0.01)
        assert httpx.get(f"{address}/api/about", trust_env=False).status_code == 200
        assert made.under_way == 1, "the page came while the clip was worked on"
        (tmp_path / "end").touch()
        slow.join()


def _wait_for(file: Path, *_: object) -> list[Finished]:
    while not file.exists():
        time.sleep(0.01)
    return [Finished(MediaError("not a media file"))]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("megabytes", 0),
        ("seconds", 0.1),
        ("workers", 0),
        ("waiting", -1),
        ("timeout", 0),
        ("batch", 0),
    ],
)
def test_limits(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least .*, got"):
        Limits(**{name: value})


def test_another_detector_than_in_training(tmp_path: Path) -> None:
    other = running.make_checkpoint(tmp_path / "model.safetensors", "yunet:0123")
    with pytest.raises(ValueError, match="face_detector must be yunet:0123"):
        Service(other, None, Limits())


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_leaves_no_process_behind(checkpoint: Path, clip: Path, sent: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "avemo", "serve", str(checkpoint), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}" in server.stdout.readline().decode()
        transport = httpx.HTTPTransport(retries=10)
        with httpx.Client(transport=transport, timeout=60) as client:
            address = f"http://127.0.0.1:{port}/api/predictions"
            assert client.post(address, content=clip.read_bytes()).status_code == 200
        server.send_signal(sent)
        server.wait(60)
        end = time.monotonic() + 10
        while _group(server.pid) and time.monotonic() < end:
            time.sleep(0.1)
        assert _group(server.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def _group(leader: int) -> list[str]:
    """What still runs in a process group."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            rest = status.read_text().rpartition(")")[2].split()
            if int(rest[2]) == leader and rest[0] != "Z":
                found.append(status.parent.name)
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "AVEMO_TOKEN"),
        (["--host", "example.org"], "AVEMO_TOKEN"),
        (["--root", "nowhere"], "root nowhere is no folder"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--port", "65536"], "port must lie in 0..65535, got 65536"),
    ],
)
def test_what_the_command_refuses(
    checkpoint: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AVEMO_TOKEN", raising=False)
    assert main(["serve", str(checkpoint), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_api_describes_itself_without_help_from_elsewhere(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/api/about", "/api/predictions", "/api/paths"}
    responses = schema["paths"]["/api/predictions"]["post"]["responses"]
    assert set(responses) == {"200", "401", "413", "422", "429"}
    for page in ("/", "/docs"):
        text = client.get(page).text
        assert "http://" not in text
        assert "https://" not in text

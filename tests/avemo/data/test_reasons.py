"""Every refusal, made for real where a file can make it; docs/clips.md has the same list."""

import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from avemo.data import limits
from avemo.data.corpora.listing import checked
from avemo.data.corpora.registry import CORPORA
from avemo.data.features import FeatureConfig, extract
from avemo.data.manifest import read_manifest
from avemo.data.media import Cut
from avemo.data.reasons import REASONS, MediaError, reason, refusal
from avemo.data.worker import ended, process_all
from tests.avemo.data import crashing
from tests.avemo.data.media_files import no_face, talking_head, tone, write_clip, write_media

PAGE = Path(__file__).parents[3] / "docs" / "clips.md"


def refused(path: Path, **options) -> str:
    with pytest.raises(MediaError) as caught:
        extract(path, FeatureConfig(), **options)
    return str(caught.value)


def fault(folder: Path, row: str) -> str:
    columns = "path,label,split,start,end,half,streams"
    (folder / "m.csv").write_text(f"{columns}\na.mp4,sad,train\n{row}\n")
    return checked(read_manifest(folder / "m.csv").rows, folder)[1].fault


def known_to_be_bad(folder: Path) -> str:
    (folder / "1064_IEO_DIS_MD.flv").touch()
    return CORPORA["crema_d"].read(folder).rows[0].fault


def spoilt(folder: Path, kind: str) -> Path:
    """A clip in which every packet of one stream is noise."""
    path = write_clip(folder / "clip.mkv", audio_codec="aac")
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.best(kind)):
            data = bytes(packet)
            at = content.find(data) if data else -1
            if at >= 0:
                content[at : at + len(data)] = rng.bytes(len(data))
    path.write_bytes(content)
    return path


def holding(folder: Path, content: bytes) -> Path:
    (folder / "clip.mp4").write_bytes(content)
    return folder / "clip.mp4"


def unknown_codec(folder: Path) -> Path:
    path = write_clip(folder / "clip.mkv", video_codec="mpeg4")
    content = path.read_bytes()
    assert content.count(b"V_MPEG4/ISO/ASP") == 1
    path.write_bytes(content.replace(b"V_MPEG4/ISO/ASP", b"V_NOBODY/KNOWS/"))
    return path


def worker(item: object, *, timeout: float = 30.0, memory: int | None = None) -> str:
    ((_, result),) = process_all(
        [item], crashing.refusing, (), workers=1, timeout=timeout, memory=memory
    )
    return result if isinstance(result, str) else str(ended(result))


def sound(folder: Path, *channels: float, codec: str = "aac") -> Path:
    both = np.stack([level * tone(1.0, hertz=300) for level in channels], axis=1)
    return write_media(folder / "clip.mkv", talking_head(25), both, audio_codec=codec)


def takes_turns(folder: Path) -> Path:
    """The head in one of four corners for a quarter of the time each."""
    frames = np.zeros((48, 288, 240, 3), np.uint8)
    for i, head in enumerate(talking_head(48)):
        y, x = 144 * (i // 12 // 2), 120 * (i // 12 % 2)
        frames[i, y : y + 144, x : x + 120] = head[:, 30:150]
    return write_media(folder / "clip.mp4", frames, tone(2.0))


def turned(folder: Path) -> Path:
    frames = np.ascontiguousarray(np.rot90(talking_head(25), axes=(1, 2)))
    return write_media(folder / "clip.mp4", frames, tone(1.0))


def huge(folder: Path) -> Path:
    frame = np.broadcast_to(np.uint8(0), (1, 6016, 6016, 3))
    codecs = {"video_codec": "ffv1", "audio_codec": "flac", "pixel_format": "gray"}
    return write_media(folder / "clip.mkv", frame, tone(1.0), **codecs)


MAKERS: dict[str, Callable[[Path], str]] = {
    "no path": lambda f: fault(f, ",sad,train"),
    "no label": lambda f: fault(f, "b.mp4,,train"),
    "unknown split": lambda f: fault(f, "b.mp4,sad,dev"),
    "unknown stream": lambda f: fault(f, "b.mp4,sad,train,,,,smell"),
    "unknown half": lambda f: fault(f, "b.mp4,sad,train,,,top,"),
    "known to be bad": known_to_be_bad,
    "no such stretch": lambda f: fault(f, "b.mp4,sad,train,2,1,,"),
    "duplicate": lambda f: fault(f, "./a.mp4,sad,train"),
    "path outside of the root": lambda f: fault(f, "../a.mp4,sad,train"),
    "no such file": lambda f: refused(f / "none.mp4"),
    "not a regular file": lambda f: refused(f),
    "empty file": lambda f: refused(holding(f, b"")),
    "unreadable file": lambda f: refused(f / ("n" * 300)),
    "not a media file": lambda f: refused(holding(f, b"not a film\n" * 1000)),
    "Git LFS pointer": lambda f: refused(
        holding(f, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    ),
    "playlist": lambda f: refused(holding(f, b"\xef\xbb\xbf#EXTM3U\n#EXTINF:1,\nfilm.ts\n")),
    "truncated": lambda f: refused(holding(f, write_clip(f / "a.mp4").read_bytes()[:-2000])),
    "damaged video": lambda f: refused(spoilt(f, "video")),
    "damaged audio": lambda f: refused(spoilt(f, "audio")),
    "no decoder": lambda f: refused(unknown_codec(f)),
    "no video stream": lambda f: refused(
        write_media(f / "a.wav", None, tone(1.0), audio_codec="pcm_s16le"), needs=["video"]
    ),
    "no audio stream": lambda f: refused(
        write_media(f / "a.mp4", no_face(25), None), needs=["audio"]
    ),
    "outside of the file": lambda f: refused(write_clip(f / "a.mp4"), cut=Cut(0.5, 2.0)),
    "too short": lambda f: refused(write_clip(f / "a.mp4", seconds=0.12)),
    "too long": lambda f: refused(write_clip(f / "a.mp4"), max_seconds=0.5),
    "too large": lambda f: refused(huge(f)),
    "too many channels": lambda f: refused(sound(f, *[1.0] * 9, codec="pcm_f32le")),
    "silent audio": lambda f: refused(sound(f, 0.0, 0.0)),
    "opposite channels": lambda f: refused(sound(f, 1.0, -1.0)),
    "no face": lambda f: refused(write_media(f / "a.mp4", no_face(25), tone(1.0))),
    "rotated picture": lambda f: refused(turned(f)),
    "several faces": lambda f: refused(takes_turns(f)),
    "too much memory": lambda f: worker("eat", memory=256 << 20),
    "too much time": lambda f: worker("hang", timeout=1.0),
    "decoder crashed": lambda f: worker("crash"),
    "unexpected error": lambda f: worker("raise"),
}


@pytest.mark.parametrize("category", REASONS)
def test_refusals_name_the_cause_and_what_to_do(tmp_path: Path, category: str) -> None:
    text = MAKERS[category](tmp_path)
    assert text.startswith(f"{category}: ")
    assert text.endswith(REASONS[category])


def test_the_page_has_every_refusal() -> None:
    page = PAGE.read_text("utf-8").split("## Refusals")[1]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", page, re.MULTILINE)[1:]
    assert {k: v.replace("\\|", "|") for k, v in rows} == REASONS


def test_the_page_has_the_bounds() -> None:
    page = PAGE.read_text("utf-8").split("## Bounds")[1].split("## Refusals")[0]
    assert f"{limits.SHORTEST_SECONDS:g} s" in page
    assert f"{limits.LONGEST_SECONDS:g} s" in page
    assert f"{limits.WINDOW_SECONDS:g} s" in page
    width, height = map(int, re.search(r"(\d+) x (\d+)", page).groups())
    assert width * height == limits.LARGEST_PIXELS
    assert f"{limits.MOST_MEMORY >> 30} GiB" in page
    assert f"{limits.LONGEST_WORK_SECONDS:g} s" in page


def test_details_stand_between_cause_and_advice() -> None:
    assert reason("too short", "0.1 s") == "too short: 0.1 s; give at least 0.2 s"
    error = refusal(MediaError("no face", "seen in 3%"))
    assert (error.category, error.details) == ("no face", "seen in 3%")
    assert f"{limits.SHORTEST_SECONDS:g} s" in REASONS["too short"]

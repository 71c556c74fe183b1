"""Every reason for which a clip is refused, and what to do about it. docs/clips.md has them as a table."""

from __future__ import annotations

from avemo.data.limits import MOST_MEMORY

_CV2_NO_MEMORY = -4

REASONS = {
    # The row of the manifest.
    "no path": "fill in the column `path`",
    "no label": "fill in the column `label`; of other corpora leave the file out",
    "unknown split": "write train, val or test",
    "unknown stream": "write audio, video, or both",
    "unknown half": "write left or right",
    "known to be bad": "docs/corpora.md says what is wrong with it",
    "no such stretch": "write start and end in seconds, the end after the start",
    "duplicate": "leave one of the rows out",
    "path outside of the root": "copy the file into the root, or give a root above it",
    # The file.
    "no such file": "check the path and the root",
    "not a regular file": "name the file itself, not a folder, pipe or device",
    "empty file": "get the file again",
    "unreadable file": "check its permissions and the disk",
    "not a media file": "get the file again, or convert it (ffmpeg -i FILE clip.mp4)",
    "Git LFS pointer": "the file's contents were not downloaded; run `git lfs pull`",
    "playlist": "it only names other files; download those and give them",
    "truncated": "the end is missing; get the file again",
    "damaged video": "get the file again",
    "damaged audio": "get the file again",
    "no decoder": "convert it (ffmpeg -i FILE clip.mp4)",
    # What is in it.
    "outside of the file": "check the times, and that the file is whole",
    "no video stream": "this model needs a picture too",
    "no audio stream": "this model needs sound too",
    "too short": "give at least 0.2 s",
    "too long": "cut it into clips, or raise max_seconds",
    "too large": "scale it down (ffmpeg -i FILE -vf scale=1280:-2 clip.mp4)",
    "too many channels": "keep one (ffmpeg -i FILE -af 'pan=mono|c0=c0' clip.mp4)",
    "silent audio": "record or choose a sound track that is heard",
    "opposite channels": "they cancel each other out; keep one (ffmpeg -i FILE -af 'pan=mono|c0=c0' clip.mp4)",
    "no face": "the face has to look towards the camera and be a twelfth of the picture's height or more",
    "rotated picture": "turn it",
    "several faces": "no one is there for long enough; cut the clip to one person",
    # The work on it.
    "too much memory": "scale it down or cut it into clips",
    "too much time": "scale it down or cut it into clips",
    "decoder crashed": "convert it (ffmpeg -i FILE clip.mp4)",
    "unexpected error": "please report it with the file",
}


class MediaError(Exception):
    """A clip that cannot be used.

    The message is the reason as `errors.csv` shows it: a category, a colon, details if there are any,
    and what to do.

    Args:
        category: one of :data:`REASONS`.
        details: what was found.
    """

    def __init__(self, category: str, details: str = "") -> None:
        super().__init__(reason(category, details))
        self.category, self.details = category, details

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return MediaError, (self.category, self.details)


def reason(category: str, details: str = "") -> str:
    """The text of a reason: its category, details and what to do."""
    return f"{category}: {'; '.join(filter(None, (details, REASONS[category])))}"


def refusal(error: Exception) -> MediaError:
    """Any error on a clip as a reason: a fault of ours or of a library must not stop the others."""
    if isinstance(error, MediaError):
        return error
    if isinstance(error, MemoryError) or getattr(error, "code", None) == _CV2_NO_MEMORY:
        return MediaError("too much memory", f"more than {MOST_MEMORY >> 30} GiB")
    return MediaError("unexpected error", f"{type(error).__name__}: {error}")


def category_of(text: str) -> str:
    """The category of a reason's text, for counting."""
    return text.split(":", 1)[0]

"""CREMA-D: names, levels, four clips known to be bad, folds of actors; whole and damaged."""

from pathlib import Path

import pytest

from avemo.data.corpora.listing import shared_speakers
from tests.avemo.data.corpora.trees import NTSC, faults, head, listed, prepared, touch
from tests.avemo.data.media_files import tone, write_media

SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
CODES = ("ANG", "DIS", "FEA", "HAP", "SAD")


def published(actor: int) -> list[str]:
    """The 82 names that most actors have: one sentence at three levels, the others at none."""
    levels = [f"{actor}_IEO_{code}_{level}" for code in CODES for level in ("LO", "MD", "HI")]
    plain = [f"{actor}_{s}_{code}_XX" for s in SENTENCES[1:] for code in CODES]
    return [*levels, *plain, *(f"{actor}_{s}_NEU_XX" for s in SENTENCES)]


def test_all_that_is_published(tmp_path: Path) -> None:
    """Of 14 actors of whom nothing is missing."""
    actors = sorted({*range(1001, 1092, 7), 1076})
    names = [name for actor in actors for name in published(actor)]
    touch(tmp_path, *(f"VideoFlash/{name}.flv" for name in names))
    for name in published(1001):
        touch(tmp_path, f"AudioWAV/{name}.wav", f"AudioMP3/{name}.mp3")
    listing = listed("crema_d", tmp_path)
    assert {row.path for row in listing.rows} == {f"VideoFlash/{name}.flv" for name in names}
    assert listing.left_out == {"sound of a clip that is there with its picture": 2 * 82}
    assert not listing.remarks
    assert faults(listing) == {
        f"VideoFlash/{name}.flv": "known to be bad"
        for name in ("1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD")
    }
    rows = listing.rows
    assert {row.label for row in rows} == {"anger", "disgust", "fear", "happy", "neutral", "sad"}
    assert sum(row.label == "neutral" for row in rows) == 14 * 12
    assert not shared_speakers((row.speaker, row.split) for row in rows)
    folds = {row.speaker: row.group for row in rows}
    assert folds == {str(actor): f"fold{(actor - 1001) % 5}" for actor in actors}
    assert {row.split for row in rows if row.group == "fold4"} == {"test"}


def test_sound_alone(tmp_path: Path) -> None:
    """Of the four, three are good as WAV; MP3 counts where there is no WAV only."""
    bad = ("1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD")
    touch(tmp_path, *(f"AudioWAV/{name}.wav" for name in bad), "AudioMP3/1076_MTI_NEU_XX.mp3")
    touch(tmp_path, "AudioMP3/1001_DFA_ANG_XX.mp3")
    listing = listed("crema_d", tmp_path)
    assert faults(listing) == {"AudioWAV/1076_MTI_SAD_XX.wav": "known to be bad"}
    assert listing.left_out == {"sound of a clip that is there as WAV": 1}
    assert {row.streams for row in listing.rows} == {("audio",)}


def test_a_sound_whose_name_was_cut_short_is_no_second_clip(tmp_path: Path) -> None:
    """As it was in the authors' repository at first."""
    sound, film = "AudioWAV/1040_ITH_SAD_X.wav", "VideoFlash/1040_ITH_SAD_XX.flv"
    touch(tmp_path, sound)
    assert [(row.path, row.label) for row in listed("crema_d", tmp_path).rows] == [(sound, "sad")]
    touch(tmp_path, film)
    listing = listed("crema_d", tmp_path)
    assert [row.path for row in listing.rows] == [film]
    assert listing.left_out == {"sound of a clip that is there with its picture": 1}


def test_a_cache_of_flash_videos(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "VideoFlash").mkdir(parents=True)
    (root / "AudioWAV").mkdir()
    film = head(24, 480, 360), tone(0.8, 44100)
    codecs = {"video_codec": "flv", "audio_codec": "libmp3lame", "fps": NTSC, "rate": 44100}
    write_media(root / "VideoFlash" / "1001_DFA_ANG_XX.flv", *film, **codecs)
    write_media(root / "VideoFlash" / "1004_IEO_SAD_HI.flv", *film, **codecs)
    for name in ("1001_DFA_ANG_XX", "1005_TAI_NEU_XX"):
        path = root / "AudioWAV" / f"{name}.wav"
        write_media(path, None, tone(0.8, 16000), audio_codec="pcm_s16le")
    clips = prepared("crema_d", root, tmp_path / "cache")
    assert {(c.path, c.label, c.speaker, c.group, c.split) for c in clips.values()} == {
        ("VideoFlash/1001_DFA_ANG_XX.flv", "anger", "1001", "fold0", "train"),
        ("VideoFlash/1004_IEO_SAD_HI.flv", "sad", "1004", "fold3", "val"),
        ("AudioWAV/1005_TAI_NEU_XX.wav", "neutral", "1005", "fold4", "test"),
    }


def test_damaged(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "AudioWAV/1001_DFA_ANG_XX.wav",
        "backup/1001_DFA_ANG_XX.wav",
        "AudioWAV/1002_dfa_hap_x.WAV",
        "AudioWAV/1003_DFA_JOY_XX.wav",
        "AudioWAV/1003_DFA_HAP.wav",
        "AudioWAV/1092_DFA_HAP_XX.wav",
        "VideoDemographics.csv",
    )
    listing = listed("crema_d", tmp_path)
    assert [(row.path, row.label) for row in listing.rows] == [
        ("AudioWAV/1001_DFA_ANG_XX.wav", "anger"),
        ("backup/1001_DFA_ANG_XX.wav", "anger"),
        ("AudioWAV/1002_dfa_hap_x.WAV", "happy"),
        ("AudioWAV/1003_DFA_JOY_XX.wav", ""),
    ]
    assert faults(listing) == {
        "backup/1001_DFA_ANG_XX.wav": "duplicate",
        "AudioWAV/1003_DFA_JOY_XX.wav": "no label",
    }
    assert listing.remarks == (
        "files that are no clips of the corpus: 3 (AudioWAV/1003_DFA_HAP.wav, "
        "AudioWAV/1092_DFA_HAP_XX.wav, VideoDemographics.csv)",
        "files whose names are in another case than published: 1 (AudioWAV/1002_dfa_hap_x.WAV)",
    )
    with pytest.raises(ValueError, match=r"must have files named like 1001_DFA_ANG_XX\.flv"):
        listed("crema_d", touch(tmp_path / "none", "a.flv"))

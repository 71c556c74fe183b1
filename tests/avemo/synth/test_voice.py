"""Measured acoustics of the voice against the table of vocal correlates."""

import numpy as np
import pytest

from avemo.synth.degrade import NOISES, AudioDegradation, degrade_audio, noise_of
from avemo.synth.emotions import EMOTIONS, Voice
from avemo.synth.script import Emphasis, draw_script
from avemo.synth.voice import (
    NEUTRAL_LEVEL,
    Speaker,
    articulation,
    draw_delivery,
    draw_speaker,
    speak,
)

RATE = 16000
SPEAKERS = 6


def say(seed: int, delivery: Voice, rate: int = RATE) -> tuple[np.ndarray, Speaker]:
    """Two seconds in which the delivery applies nearly throughout: the samples of its plateau, and who spoke."""
    speaker = draw_speaker(np.random.default_rng((seed, 0)))
    emphasis = Emphasis(0.05, 1.0, 1.95)
    rng = np.random.default_rng((seed, 1))
    sound = speak(
        draw_script(2.0, emphasis, delivery, speaker.rate, rng), speaker, delivery, rate, rng
    )
    return sound[round(0.4 * rate) : round(1.6 * rate)], speaker


def level(sound: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(sound**2)))


def pitch(sound: np.ndarray) -> np.ndarray:
    """Hertz of the louder half of all stretches of 64 ms, by YIN (de Cheveigne and Kawahara, 2002) to a sample."""
    width, longest = 1024, RATE // 60
    frames = np.lib.stride_tricks.sliding_window_view(sound, width)[::160].astype(np.float64)
    frames = frames[frames.std(1) > np.median(frames.std(1))]
    length = width - longest
    head = frames[:, :length]
    difference = np.stack(
        [np.square(head - frames[:, lag : lag + length]).sum(1) for lag in range(1, longest)], 1
    )
    lags = np.arange(1, longest)
    relative = difference * lags / np.maximum(np.cumsum(difference, 1), 1e-12)
    relative[:, : RATE // 500] = 1.0
    small = relative < 0.1
    lowest = np.where(small.any(1), small.argmax(1), relative.argmin(1))
    while True:  # down into the dip
        further = np.minimum(lowest + 1, relative.shape[1] - 1)
        deeper = (
            relative[np.arange(len(lowest)), further] < relative[np.arange(len(lowest)), lowest]
        )
        if not deeper.any():
            return RATE / lags[lowest]
        lowest = np.where(deeper, further, lowest)


def voiced(sound: np.ndarray) -> np.ndarray:
    """The louder half of the sound, block by block of 20 ms: vowels rather than consonants and pauses."""
    blocks = sound[: len(sound) // 320 * 320].reshape(-1, 320)
    loudness = blocks.std(1)
    return blocks[loudness > np.median(loudness)]


def brightness(sound: np.ndarray) -> float:
    """Level at 2 to 4 kHz against that below 1 kHz in voiced sound, dB."""
    power = (np.abs(np.fft.rfft(voiced(sound) * np.hanning(320))) ** 2).mean(0)
    frequency = np.fft.rfftfreq(320, 1 / RATE)
    high, low = (frequency >= 2000) & (frequency < 4000), (frequency > 0) & (frequency < 1000)
    return float(10 * np.log10(power[high].sum() / power[low].sum()))


@pytest.fixture(scope="module")
def measured() -> dict[str, np.ndarray]:
    """Per emotion and speaker: level (dB), median pitch (semitones of 100 Hz), brightness (dB)."""
    found = {}
    for label in ("angry", "happy", "neutral", "sad"):
        sounds = [say(seed, EMOTIONS[label].voice)[0] for seed in range(SPEAKERS)]
        found[label] = np.array(
            [(level(s), 12 * np.log2(np.median(pitch(s)) / 100), brightness(s)) for s in sounds]
        )
    return found


def test_aroused_voices_are_louder_higher_and_brighter_than_sad_ones(
    measured: dict[str, np.ndarray],
) -> None:
    for label in ("angry", "happy"):
        difference = (measured[label] - measured["sad"]).mean(0)
        assert difference[0] > 10  # dB; the table says 17 and more
        assert difference[1] > 4  # semitones; the table says 7 and more
        assert difference[2] > 4  # dB


def test_neutral_lies_between(measured: dict[str, np.ndarray]) -> None:
    for lower, upper in (("sad", "neutral"), ("neutral", "angry"), ("neutral", "happy")):
        assert np.all((measured[upper] - measured[lower]).mean(0) > 1.0)


def test_angry_and_happy_voices_are_close(measured: dict[str, np.ndarray]) -> None:
    between = np.abs((measured["angry"] - measured["happy"]).mean(0))
    apart = np.abs((measured["angry"] - measured["sad"]).mean(0))
    assert np.all(between < 0.5 * apart)


def test_neutral_voice_has_its_speakers_pitch_and_the_nominal_level() -> None:
    levels, errors = [], []
    for seed in range(SPEAKERS):
        sound, speaker = say(seed, Voice())
        levels.append(level(sound))
        errors.append(12 * np.log2(np.median(pitch(sound)) / speaker.pitch))
    assert abs(np.mean(levels) - NEUTRAL_LEVEL) < 2
    assert np.max(np.abs(errors)) < 3  # semitones; accents and declination move it


def test_pitch_shift_is_the_one_asked_for() -> None:
    shifts = []
    for seed in range(SPEAKERS):
        low, high = (np.median(pitch(say(seed, Voice(pitch=p))[0])) for p in (0.0, 5.0))
        shifts.append(12 * np.log2(high / low))
    assert abs(np.median(shifts) - 5.0) < 0.7


def test_sad_speech_is_slower() -> None:
    rng = np.random.default_rng(0)
    emphasis = Emphasis(0.05, 1.2, 2.35)
    spoken = {
        label: np.mean(
            [
                len(draw_script(2.4, emphasis, EMOTIONS[label].voice, 5.0, rng).syllables)
                for _ in range(40)
            ]
        )
        for label in ("angry", "neutral", "sad")
    }
    assert spoken["angry"] > spoken["neutral"] > spoken["sad"]


def test_delivery_keeps_the_direction_of_strong_cues_but_varies() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_delivery(EMOTIONS["angry"].voice, 1.0, rng) for _ in range(200)]
    assert np.mean([d.pitch for d in drawn]) == pytest.approx(
        EMOTIONS["angry"].voice.pitch * 0.975, rel=0.1
    )
    assert np.std([d.pitch for d in drawn]) > 0.5
    assert min(d.energy for d in drawn) > 0


def test_jaw_opens_with_the_voice() -> None:
    rng = np.random.default_rng(3)
    speaker = draw_speaker(rng)
    script = draw_script(2.4, Emphasis(0.5, 1.0, 1.5), Voice(), 4.5, rng)
    sound = speak(script, speaker, Voice(), RATE, rng)
    times, jaw, rounding = articulation(script)
    loudness = np.array([np.std(sound[round(t * RATE) : round(t * RATE) + 320]) for t in times])
    assert np.corrcoef(jaw, loudness)[0, 1] > 0.4
    assert jaw.min() >= 0
    assert jaw.max() <= 1
    assert rounding.max() <= 1


@pytest.mark.parametrize("rate", [16000, 48000])
def test_length_and_rate(rate: int) -> None:
    sound, _ = say(0, Voice(), rate)
    assert len(sound) == round(1.2 * rate)
    assert np.isfinite(sound).all()


@pytest.mark.parametrize("kind", [*NOISES, "room"])
@pytest.mark.parametrize("snr_db", [-5.0, 12.0])
def test_measured_ratio_is_the_drawn_one(kind: str, snr_db: float) -> None:
    speech, _ = say(1, Voice())
    noisy = degrade_audio(speech, AudioDegradation(kind, snr_db), RATE, np.random.default_rng(7))
    assert level(speech) - level(noisy - speech) == pytest.approx(snr_db, abs=1e-6)


def test_noises_have_their_spectra() -> None:
    def balance(kind: str) -> float:
        """Level at 2 to 4 kHz against 0.5 to 1 kHz, dB."""
        power = np.abs(np.fft.rfft(noise_of(kind, RATE * 2, RATE, np.random.default_rng(0)))) ** 2
        octave = np.arange(len(power)) / 2  # Hz
        high, low = (octave >= 2000) & (octave < 4000), (octave >= 500) & (octave < 1000)
        return float(10 * np.log10(power[high].sum() / power[low].sum()))

    assert balance("white") == pytest.approx(10 * np.log10(4), abs=0.5)
    assert balance("pink") == pytest.approx(0.0, abs=0.5)  # equal power per octave
    assert balance("hum") < -10
    assert balance("babble") < -3

"""A source-filter voice: glottal pulses through moving formants (Fant, 1960; Klatt, 1980, cascade synthesis).

The source is the derivative of the trigonometric glottal pulse of Rosenberg (1971), "Effect of glottal pulse shape on
the quality of natural vowels", with jitter, shimmer, aspiration noise and a spectral tilt. Control values move
every 5 ms; the formants filter overlapping pieces of 20 ms.
"""

import math
from dataclasses import dataclass

import numpy as np

from avemo.synth.emotions import Voice
from avemo.synth.script import CONSONANTS, VOWELS, Script

HOP = 0.005  # s between control values
NEUTRAL_LEVEL = -33.0  # dB of full scale, a neutral voice at unit recording gain
NEUTRAL_TILT = -11.0  # dB at 3 kHz against 0 Hz, on top of the pulse's own slope
BANDWIDTHS = (70.0, 90.0, 130.0, 180.0, 250.0)  # Hz, of the five formants
GAIN = 10 ** (NEUTRAL_LEVEL / 20) / 3.5  # brings an average neutral voice to its level
OVERSAMPLING = 2  # of the source, whose closing corner would alias audibly


@dataclass(frozen=True)
class Speaker:
    """What is a speaker's own in a voice.

    Attributes:
        pitch: neutral mean fundamental frequency, Hz.
        tract: factor on all formants against an average male speaker (inverse length of the vocal tract).
        rate: neutral syllables per second.
        pitch_range: standard deviation of neutral accents, semitones.
        tilt: departure from the neutral spectral tilt, dB at 3 kHz.
        jitter: neutral cycle-to-cycle variation of the period, fraction.
        breathiness: neutral level of aspiration noise relative to the voiced source.
        expressivity: factor on every change that an emotion makes.
    """

    pitch: float
    tract: float
    rate: float
    pitch_range: float
    tilt: float
    jitter: float
    breathiness: float
    expressivity: float


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """Draws a low or a high voice; tract length goes with pitch, as it does in people."""
    high = rng.random() < 0.5
    return Speaker(
        pitch=float((205.0 if high else 115.0) * 2 ** (rng.normal(0, 2.0) / 12)),
        tract=float((1.15 if high else 1.0) * rng.uniform(0.95, 1.06)),
        rate=float(rng.uniform(4.3, 5.6)),
        pitch_range=float(rng.uniform(1.0, 2.0)),
        tilt=float(rng.normal(0, 2.0)),
        jitter=float(rng.uniform(0.004, 0.010)),
        breathiness=float(rng.uniform(0.01, 0.05)),
        expressivity=float(rng.uniform(0.85, 1.15)),
    )


def draw_delivery(voice: Voice, strength: float, rng: np.random.Generator) -> Voice:
    """One clip's version of an emotion's voice: scaled by `strength`, each cue stronger or weaker by itself.

    A part of the departure is there whatever the emotion (people stress what they say), so that no cue is proof.
    """

    def vary(value: float, spread: float) -> float:
        return strength * value * rng.uniform(0.7, 1.25) + rng.normal(0, spread)

    return Voice(
        pitch=vary(voice.pitch, 0.6),
        pitch_range=2.0 ** vary(np.log2(voice.pitch_range), 0.15),
        contour=vary(voice.contour, 0.8),
        energy=vary(voice.energy, 1.0),
        rate=2.0 ** vary(np.log2(voice.rate), 0.05),
        brightness=vary(voice.brightness, 1.0),
        jitter=max(0.0, vary(voice.jitter, 0.002)),
        shimmer=max(0.0, vary(voice.shimmer, 0.1)),
        breathiness=max(0.0, vary(voice.breathiness, 0.01)),
        pause=vary(voice.pause, 0.02),
    )


@dataclass(frozen=True)
class _Tracks:
    """Control values, one per hop: float64 (frames,) each, formants (frames, 5), noise by its pass band."""

    f0: np.ndarray
    voicing: np.ndarray
    formants: np.ndarray
    tilt: np.ndarray
    strength: np.ndarray
    noise: dict[tuple[float, float], np.ndarray]


def _smooth(track: np.ndarray, seconds: float) -> np.ndarray:
    """Moving average over `seconds` along the first axis, edges repeated."""
    from scipy.ndimage import uniform_filter1d

    return uniform_filter1d(track, max(1, round(seconds / HOP)), axis=0, mode="nearest")


def articulation(script: Script) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mouth that says the script.

    Returns:
        times (s), jaw opening in [0, 1] and lip rounding in [0, 1], one value per 5 ms, float64 (frames,) each.
    """
    times = np.arange(round(script.duration / HOP)) * HOP
    jaw, rounding = np.zeros_like(times), np.zeros_like(times)
    for syllable in script.syllables:
        f1, f2, _ = VOWELS[syllable.vowel]
        begin, end = (round(t / HOP) for t in (syllable.start, syllable.start + syllable.duration))
        onset = begin + round(0.3 * (end - begin))
        jaw[begin:onset] = 0.0 if CONSONANTS[syllable.consonant].lips else 0.12
        jaw[onset:end] = 0.2 + 0.7 * (f1 - 270) / 460
        rounding[begin:end] = np.clip((1300 - f2) / 500, 0.0, 1.0)
    return times, _smooth(_smooth(jaw, 0.06), 0.04), _smooth(rounding, 0.12)


def _tracks(script: Script, speaker: Speaker, delivery: Voice, rng: np.random.Generator) -> _Tracks:
    """Control values of the whole clip."""
    times = np.arange(round(script.duration / HOP)) * HOP
    strength = script.emphasis.envelope(times)
    voicing, accent = np.zeros_like(times), np.zeros_like(times)
    formants = np.tile(np.array(VOWELS["ah"], float), (len(times), 1))
    noise: dict[tuple[float, float], np.ndarray] = {}
    for syllable in script.syllables:
        consonant = CONSONANTS[syllable.consonant]
        begin, end = (round(t / HOP) for t in (syllable.start, syllable.start + syllable.duration))
        onset = begin + max(6, round(0.3 * (end - begin)))
        level = 10 ** (1.5 * syllable.stress / 20)
        voicing[begin:onset] = level * consonant.voicing
        phase = (np.arange(end - onset) + 0.5) / max(1, end - onset)
        voicing[onset:end] = level * (0.55 + 0.45 * np.sin(np.pi * phase**0.7))
        formants[begin:onset] = consonant.locus
        formants[onset:end] = VOWELS[syllable.vowel]
        accent[begin:end] = syllable.stress
        if consonant.noise:
            gate = noise.setdefault(consonant.band, np.zeros_like(times))
            gate[max(begin, onset - 4) if consonant.burst else begin : onset] = (
                consonant.noise * level
            )

    spoken = times[-1] if not script.syllables else script.syllables[-1].start
    drift = _smooth(rng.normal(size=len(times)), 0.05)
    excursion = speaker.pitch_range * (_smooth(accent, 0.10) + 0.9 * drift)
    excursion -= 1.2 * (times - 0.5 * spoken)  # declination, semitones per second
    semitones = (
        excursion * delivery.pitch_range**strength
        + strength * delivery.pitch
        + strength * delivery.contour * (times - script.emphasis.apex)
    )
    gain = 10 ** (delivery.energy * strength / 20)
    high = np.array([3500.0, 4500.0]) * np.ones((len(times), 1))
    return _Tracks(
        f0=np.clip(speaker.pitch * 2 ** (_smooth(semitones, 0.03) / 12), 55.0, 600.0),
        voicing=_smooth(voicing, 0.02) * gain,
        formants=speaker.tract * np.concatenate([_smooth(formants, 0.05), high], axis=1),
        tilt=np.clip(NEUTRAL_TILT + speaker.tilt + strength * delivery.brightness, -30.0, -1.0),
        strength=strength,
        noise={band: _smooth(gate, 0.01) * gain for band, gate in noise.items()},
    )


def _glottal_flow_derivative(phase: np.ndarray, open_quotient: float = 0.62) -> np.ndarray:
    """Derivative over phase in [0, 1) of Rosenberg's trigonometric pulse: opening twice as long as closing."""
    rise, fall = open_quotient * 2 / 3, open_quotient / 3
    opening = 0.5 * np.pi / rise * np.sin(np.pi * phase / rise)
    closing = -0.5 * np.pi / fall * np.sin(0.5 * np.pi * (phase - rise) / fall)
    return np.where(phase < rise, opening, np.where(phase < rise + fall, closing, 0.0))


def _source(
    tracks: _Tracks,
    speaker: Speaker,
    delivery: Voice,
    samples: int,
    rate: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Voiced pulses and aspiration, before tilt and formants: float64 (samples,)."""
    from scipy.signal import resample_poly

    fine = np.arange(samples * OVERSAMPLING) / (rate * OVERSAMPLING)
    grid = np.arange(len(tracks.f0)) * HOP
    f0 = np.interp(fine, grid, tracks.f0)
    cycle = np.cumsum(f0) / (rate * OVERSAMPLING)
    deviates = rng.normal(size=(2, int(cycle[-1]) + 2))
    strength = np.interp(fine, grid, tracks.strength)
    index = cycle.astype(np.int64)
    jitter = speaker.jitter + strength * delivery.jitter
    cycle = np.cumsum(f0 * (1 + jitter * deviates[0][index])) / (rate * OVERSAMPLING)
    shimmer = 0.3 + strength * delivery.shimmer
    amplitude = 10 ** (shimmer * deviates[1][index] / 20) * np.interp(fine, grid, tracks.voicing)
    phase = cycle % 1.0
    breath = speaker.breathiness + strength * delivery.breathiness
    # Turbulence comes in with the airflow, hence mostly while the glottis is open.
    turbulence = breath * rng.normal(size=len(fine)) * (0.4 + (phase < 0.62)) * 1.5
    return resample_poly(
        amplitude * (_glottal_flow_derivative(phase) + turbulence), 1, OVERSAMPLING
    )


def _tilt_pole(tilt: np.ndarray, rate: int) -> np.ndarray:
    """Pole of the one-pole low-pass (unit gain at 0 Hz) whose gain at 3 kHz is `tilt` dB."""
    poles = np.linspace(0.0, 0.97, 200)
    gain = 20 * np.log10((1 - poles) / np.abs(1 - poles * np.exp(-2j * np.pi * 3000 / rate)))
    return np.interp(tilt, gain[::-1], poles[::-1])


def _filter(source: np.ndarray, tracks: _Tracks, rate: int) -> np.ndarray:
    """Tilt and five formants in cascade, moving: float64 like `source`.

    Windowed pieces of 20 ms are filtered one by one as spectra and added up. (A recursive filter whose coefficients are
    switched under its state clicks, and the clicks are louder than a voice is at 3 kHz.)
    """
    step = round(0.01 * rate)
    # A window that adds up to 1 with its neighbours.
    window = np.sin(np.pi * (np.arange(2 * step) + 0.5) / (2 * step)) ** 2
    pieces = len(source) // step + 1
    padded = np.pad(source, (step, 2 * step))
    blocks = np.lib.stride_tricks.sliding_window_view(padded, 2 * step)[::step][:pieces] * window
    length = 1 << math.ceil(math.log2(2 * step + 0.04 * rate))  # room for 40 ms of ringing
    centre = np.minimum(np.arange(pieces) * round(0.01 / HOP), len(tracks.f0) - 1)

    frequency = np.minimum(tracks.formants[centre], 0.47 * rate)
    radius = np.exp(-np.pi * np.array(BANDWIDTHS) / rate)
    middle, last = -2 * radius * np.cos(2 * np.pi * frequency / rate), radius**2
    delay = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)  # z^-1 on the unit circle
    pole = _tilt_pole(tracks.tilt[centre], rate)[:, None]
    response = (1 - pole) / (1 - pole * delay)
    for m, n in zip(middle.T[:, :, None], last, strict=True):
        response *= (1 + m + n) / (1 + m * delay + n * delay**2)

    filtered = np.fft.irfft(np.fft.rfft(blocks, length) * response, length)
    out = np.zeros(pieces * step + length)
    for k, piece in enumerate(filtered):
        out[k * step : k * step + length] += piece
    return out[step : step + len(source)]


def speak(
    script: Script, speaker: Speaker, delivery: Voice, rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Says the script.

    Args:
        script: what to say and when to be emotional.
        speaker: whose voice.
        delivery: change of the voice at the apex.
        rate: sampling rate, Hz, at least 16000.
        rng: source of jitter, shimmer and noise.

    Returns:
        float64 (round(duration * rate),), scaled so that a neutral voice has about NEUTRAL_LEVEL dB of full scale.
    """
    from scipy.signal import butter, sosfilt

    samples = round(script.duration * rate)
    tracks = _tracks(script, speaker, delivery, rng)
    spoken = _filter(_source(tracks, speaker, delivery, samples, rate, rng), tracks, rate)
    grid, fine = np.arange(len(tracks.f0)) * HOP, np.arange(samples) / rate
    for (low, high), gate in tracks.noise.items():
        band = butter(2, (low, min(high, 0.48 * rate)), "bandpass", fs=rate, output="sos")
        spoken += 6.0 * np.interp(fine, grid, gate) * sosfilt(band, rng.normal(size=samples))
    return spoken * GAIN

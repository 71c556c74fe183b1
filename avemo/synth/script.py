"""When things happen in a clip: the syllables that are spoken and the span in which the emotion shows.

Face and voice are rendered from the same script, which is what aligns them in time.
"""

from dataclasses import dataclass

import numpy as np

from avemo.synth.emotions import Voice

# Formants F1..F3 of a male speaker in Hz: Peterson & Barney (1952), "Control methods used in a study of the vowels".
VOWELS: dict[str, tuple[float, float, float]] = {
    "iy": (270, 2290, 3010),
    "ih": (390, 1990, 2550),
    "eh": (530, 1840, 2480),
    "ae": (660, 1720, 2410),
    "aa": (730, 1090, 2440),
    "ao": (570, 840, 2410),
    "uh": (440, 1020, 2240),
    "uw": (300, 870, 2240),
    "ah": (640, 1190, 2390),
}


@dataclass(frozen=True)
class Consonant:
    """A syllable's onset.

    Attributes:
        locus: formants F1..F3 that the vowel moves away from, Hz (of a male speaker).
        voicing: amplitude of the voiced source relative to a vowel.
        noise: amplitude of the frication or burst noise relative to a vowel.
        band: pass band of that noise, Hz.
        burst: whether the noise is a short burst at the release rather than sustained.
        lips: whether the lips close.
    """

    locus: tuple[float, float, float]
    voicing: float
    noise: float = 0.0
    band: tuple[float, float] = (2000.0, 4000.0)
    burst: bool = False
    lips: bool = False


CONSONANTS: dict[str, Consonant] = {
    "b": Consonant((200, 800, 2200), 0.15, 0.15, (500, 1500), burst=True, lips=True),
    "p": Consonant((300, 800, 2200), 0.0, 0.30, (500, 1500), burst=True, lips=True),
    "d": Consonant((200, 1700, 2600), 0.15, 0.20, (3000, 6000), burst=True),
    "t": Consonant((300, 1700, 2600), 0.0, 0.40, (3000, 6000), burst=True),
    "k": Consonant((300, 1900, 2300), 0.0, 0.35, (1500, 3000), burst=True),
    "m": Consonant((250, 1000, 2200), 0.45, lips=True),
    "n": Consonant((250, 1500, 2500), 0.45),
    "l": Consonant((360, 1100, 2600), 0.6),
    "w": Consonant((290, 650, 2200), 0.6, lips=True),
    "s": Consonant((300, 1700, 2600), 0.0, 0.30, (4500, 7500)),
    "sh": Consonant((300, 1800, 2500), 0.0, 0.35, (2200, 5500)),
    "f": Consonant((300, 1000, 2200), 0.0, 0.12, (1200, 7500)),
}


@dataclass(frozen=True)
class Syllable:
    """One consonant and one vowel.

    Attributes:
        start: seconds.
        duration: seconds.
        consonant: key of CONSONANTS.
        vowel: key of VOWELS.
        stress: prominence, about standard normal: lifts pitch and energy.
    """

    start: float
    duration: float
    consonant: str
    vowel: str
    stress: float


@dataclass(frozen=True)
class Emphasis:
    """The span in which the emotion shows: it rises from `start`, is full around `apex` and is gone at `end` (s)."""

    start: float
    apex: float
    end: float

    def envelope(self, times: np.ndarray) -> np.ndarray:
        """Strength in [0, 1] at `times` (s): raised-cosine flanks around a plateau of half the span."""
        plateau = 0.25 * (self.end - self.start)
        rise = (times - self.start) / (self.apex - plateau - self.start)
        fall = (self.end - times) / (self.end - self.apex - plateau)
        return 0.5 - 0.5 * np.cos(np.pi * np.clip(np.minimum(rise, fall), 0.0, 1.0))


@dataclass(frozen=True)
class Script:
    """What one clip says and when it is emotional.

    Attributes:
        duration: length of the clip, s.
        emphasis: the span of the expression.
        syllables: in order of time, not overlapping.
    """

    duration: float
    emphasis: Emphasis
    syllables: tuple[Syllable, ...]


def draw_emphasis(duration: float, rng: np.random.Generator) -> Emphasis:
    """Draws a span of 45 to 60 percent of the clip of `duration` seconds, its apex near its middle."""
    length = duration * rng.uniform(0.45, 0.60)
    start = rng.uniform(0.10, duration - length - 0.05)
    return Emphasis(start, start + length * rng.uniform(0.42, 0.58), start + length)


def throughout(duration: float) -> Emphasis:
    """A span whose plateau is the whole of a clip of `duration` seconds."""
    return Emphasis(-duration, duration / 2, 2 * duration)


def draw_script(
    duration: float, emphasis: Emphasis, voice: Voice, rate: float, rng: np.random.Generator
) -> Script:
    """Draws syllables and pauses.

    Args:
        duration: length of the clip, s.
        emphasis: the span in which `voice` applies.
        voice: change of rate and pauses at the apex.
        rate: the speaker's neutral rate, syllables per second.
        rng: source of the draw.
    """
    syllables = []
    time = rng.uniform(0.12, 0.20)
    while True:
        strength = float(emphasis.envelope(np.asarray(time + 0.1)))
        speed = rate * voice.rate**strength
        length = rng.uniform(0.8, 1.25) / speed
        if time + length > duration - 0.10:
            break
        syllables.append(
            Syllable(
                time,
                length,
                str(rng.choice(list(CONSONANTS))),
                str(rng.choice(list(VOWELS))),
                float(rng.normal()),
            )
        )
        time += length
        if rng.random() < 0.07 + strength * voice.pause:
            time += rng.uniform(0.10, 0.22)
    return Script(duration, emphasis, tuple(syllables))

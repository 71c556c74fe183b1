"""What each emotion does to a face and to a voice: tables only, with their published sources.

Faces: the prototypical facial actions per emotion of EMFACS (Friesen & Ekman, 1983, "EMFACS-7: Emotional Facial
Action Coding System") in the FACS coding of Ekman, Friesen & Hager (2002, "Facial Action Coding System. The
Manual"), in the short form that Lucey et al. (2010, "The Extended Cohn-Kanade Dataset (CK+)", Table 1) give.

Voices: the direction of every cue follows the reviews of Banse & Scherer (1996, "Acoustic profiles in vocal emotion
expression", J. Pers. Soc. Psychol. 70), Juslin & Laukka (2003, "Communication of emotions in vocal expression and
music performance", Psychol. Bull. 129, Table 7) and Murray & Arnott (1993, "Toward the simulation of emotion in
synthetic speech", J. Acoust. Soc. Am. 93, Table I). These reviews hardly cover surprise, which follows Scherer &
Oshinsky (1977, "Cue utilization in emotion attribution from auditory stimuli", Motiv. Emot. 1). The sizes are ours:
chosen inside the published ranges so that emotions of equal arousal sound alike (angry and happy; happy and surprise)
while their faces differ, and quiet faces look alike (sad and neutral) while their voices differ.
"""

from dataclasses import dataclass, field
from typing import Literal

# Facial action units that the renderer knows, by FACS number.
ACTION_UNITS = {
    1: "inner brow raiser",
    2: "outer brow raiser",
    4: "brow lowerer",
    5: "upper lid raiser",
    6: "cheek raiser",
    7: "lid tightener",
    9: "nose wrinkler",
    10: "upper lip raiser",
    12: "lip corner puller",
    15: "lip corner depressor",
    16: "lower lip depressor",
    17: "chin raiser",
    20: "lip stretcher",
    23: "lip tightener",
    25: "lips part",
    26: "jaw drop",
    45: "blink",
}


@dataclass(frozen=True)
class Voice:
    """How a voice at full intensity departs from the same speaker's neutral voice.

    Attributes:
        pitch: shift of the mean fundamental frequency, semitones.
        pitch_range: factor on the excursions of the fundamental frequency around its mean.
        contour: slope of the fundamental frequency over the emphasis, semitones per second.
        energy: change of the speech level, dB.
        rate: factor on the syllable rate.
        brightness: change of the source spectrum's level at 3 kHz relative to 0 Hz, dB.
        jitter: added cycle-to-cycle variation of the period, as a fraction of the period.
        shimmer: added cycle-to-cycle variation of the amplitude, dB.
        breathiness: added level of aspiration noise relative to the voiced source.
        pause: added probability of a pause after a syllable.
    """

    pitch: float = 0.0
    pitch_range: float = 1.0
    contour: float = 0.0
    energy: float = 0.0
    rate: float = 1.0
    brightness: float = 0.0
    jitter: float = 0.0
    shimmer: float = 0.0
    breathiness: float = 0.0
    pause: float = 0.0


@dataclass(frozen=True)
class Emotion:
    """One emotion.

    Attributes:
        face: strength in [0, 1] of every action unit at the apex of a full expression.
        optional: the action units among them that a single expression may lack.
        voice: the change of the voice at the apex of a full expression.
    """

    face: dict[int, float] = field(default_factory=dict)
    optional: frozenset[int] = frozenset()
    voice: Voice = Voice()


EMOTIONS: dict[str, Emotion] = {
    "angry": Emotion(
        face={4: 1.0, 5: 0.55, 7: 0.6, 23: 0.9, 17: 0.4},
        optional=frozenset({5, 7, 17}),
        voice=Voice(
            pitch=4.4,
            pitch_range=1.6,
            contour=-4.0,
            energy=9.5,
            rate=1.2,
            brightness=8.5,
            jitter=0.022,
            shimmer=1.0,
            pause=-0.05,
        ),
    ),
    "disgust": Emotion(
        face={9: 1.0, 10: 0.7, 15: 0.4, 16: 0.4, 4: 0.3},
        optional=frozenset({15, 16, 4}),
        voice=Voice(
            pitch=-1.6,
            pitch_range=1.1,
            contour=-2.5,
            energy=-1.0,
            rate=0.72,
            brightness=-1.0,
            jitter=0.012,
            shimmer=0.6,
            pause=0.06,
        ),
    ),
    "fear": Emotion(
        face={1: 0.9, 2: 0.6, 4: 0.6, 5: 0.8, 7: 0.3, 20: 0.7, 26: 0.4, 25: 0.4},
        optional=frozenset({7, 26, 4}),
        voice=Voice(
            pitch=6.0,
            pitch_range=0.7,
            contour=1.0,
            energy=0.5,
            rate=1.3,
            brightness=1.0,
            jitter=0.020,
            shimmer=0.8,
            breathiness=0.08,
            pause=0.05,
        ),
    ),
    "happy": Emotion(
        face={6: 0.8, 12: 1.0, 25: 0.4},
        optional=frozenset({6, 25}),
        voice=Voice(
            pitch=6.2,
            pitch_range=1.9,
            contour=3.5,
            energy=8.0,
            rate=1.17,
            brightness=5.5,
            jitter=0.002,
            shimmer=0.2,
            pause=-0.05,
        ),
    ),
    "neutral": Emotion(),
    # The prototype at full strength would be as easy to see as a smile; sadness in talking faces is subdued.
    "sad": Emotion(
        face={1: 0.35, 4: 0.3, 15: 0.35, 17: 0.2},
        optional=frozenset({1, 4, 15, 17}),
        voice=Voice(
            pitch=-3.2,
            pitch_range=0.55,
            contour=-1.5,
            energy=-9.0,
            rate=0.66,
            brightness=-8.5,
            jitter=0.006,
            shimmer=0.3,
            breathiness=0.15,
            pause=0.2,
        ),
    ),
    "surprise": Emotion(
        face={1: 0.9, 2: 0.95, 5: 0.8, 26: 0.8, 25: 0.6},
        optional=frozenset({5, 25}),
        voice=Voice(
            pitch=5.8,
            pitch_range=1.9,
            contour=5.0,
            energy=5.5,
            rate=1.05,
            brightness=3.5,
            jitter=0.004,
        ),
    ),
}

# The class sets of the two corpora that the network was published on: IEMOCAP (4) and AFEW (7).
CLASSES: dict[int, tuple[str, ...]] = {
    4: ("angry", "happy", "neutral", "sad"),
    7: ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
}

ClassCount = Literal[4, 7]

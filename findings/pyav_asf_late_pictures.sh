#!/usr/bin/env bash
# Guess: in a file that was written with picture and sound in step, a decoded frame's pts says when it is shown, the more so
# without B-frames, where pictures are stored in the order in which they are shown.
# Real: H.264 without B-frames in ASF: by pts pictures come a whole frame (40 ms) after their sound. ASF stores one time per
# packet, of decoding, and FFmpeg guesses the other from how far H.264 could reorder; MPEG-4 in ASF, and H.264 in Matroska,
# are well. frame.dts is right. PyAV 17.1.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install av==17.1.0 numpy==2.4.6
v/bin/python - <<'PY'
from fractions import Fraction
import av
import numpy as np

RATE, FPS = 48000, 25

def write(path, codec):  # from 1 s on it is bright and loud
    with av.open(path, "w") as out:
        video = out.add_stream(codec, rate=FPS, options={"bf": "0"})
        video.width = video.height = 96
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("libmp3lame", rate=RATE, layout="mono")
        packets = []
        for n in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((96, 96), 235 if n >= FPS else 16, np.uint8), format="gray")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            packets += video.encode(frame)
        packets += video.encode(None)
        time = np.arange(2 * RATE) / RATE
        sound = (0.5 * np.sin(2 * np.pi * 1000 * time) * (time >= 1)).astype(np.float32)
        for first in range(0, sound.size, 1152):
            frame = av.AudioFrame.from_ndarray(sound[None, first : first + 1152], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, first, Fraction(1, RATE)
            packets += audio.encode(frame)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            out.mux(packet)

def read(path):
    """When it gets bright by pts and by dts, and when it gets loud, seconds."""
    with av.open(path) as file:
        frames = [(f.pts, f.dts, f.time_base, f.to_ndarray(format="gray").mean()) for f in file.decode(video=0)]
    with av.open(path) as file:
        loud = None
        for frame in file.decode(audio=0):
            over = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.2)
            if over.size and loud is None:
                loud = float(frame.pts * frame.time_base) + over[0] / RATE
    bright = next(f for f in frames if f[3] > 120)
    return float(bright[0] * bright[2]), float(bright[1] * bright[2]), loud

seen = {}
for path, codec in (("h264.asf", "libx264"), ("mpeg4.asf", "mpeg4"), ("h264.mkv", "libx264")):
    write(path, codec)
    bright, decoded, loud = read(path)
    seen[path] = 1000 * (bright - loud), 1000 * (decoded - loud)
    print(path, "picture after sound, ms: by pts %.0f, by dts %.0f" % seen[path])
print("PyAV", av.__version__, "libavformat", av.library_versions["libavformat"])
print("expected by most: about 0 everywhere; stated: 40 ms by pts in ASF with H.264, 0 by dts")
assert abs(seen["h264.asf"][0] - 40) < 6 and abs(seen["h264.asf"][1]) < 6, seen
assert abs(seen["mpeg4.asf"][0]) < 6 and abs(seen["h264.mkv"][0]) < 6, seen
print("as stated")
PY

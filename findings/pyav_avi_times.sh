#!/usr/bin/env bash
# Guess: frame.pts of decoded pictures grows from one to the next, since they come in order of display, and the first is at 0.
# Real: not from AVI with B-frames: pictures come in order, but with H.264 their pts step back (1 3 4 2), with H.264 and MPEG-4 (as of Xvid) the
# first is late, and dts is what grows. Without B-frames, the lead-in of MP3 or AAC has FFmpeg leave a place empty after the first picture: all that
# follow are a frame late against it. Matroska: nothing of this. PyAV 17.1.0; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install av==17.1.0 numpy==2.4.6
v/bin/python - <<'PY'
from fractions import Fraction

import av
import numpy as np

FPS, RATE, COUNT = 25, 48000, 50


def write(name, codec, b_frames, sound):
    with av.open(name, "w") as out:
        options = {"bf": str(b_frames)} | ({"b-adapt": "0", "preset": "veryfast"} if codec == "libx264" else {})
        video = out.add_stream(codec, rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = out.add_stream(sound, rate=RATE, layout="mono")
        packets = []
        for n in range(COUNT):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64), 40 + 4 * n, np.uint8), format="gray")
            picture = picture.reformat(format="yuv420p")
            picture.pts, picture.time_base = n, Fraction(1, FPS)
            packets += video.encode(picture)
        packets += video.encode(None)
        for first in range(0, COUNT * RATE // FPS, 1024):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE, first, Fraction(1, RATE)
            packets += audio.encode(block)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            out.mux(packet)


def read(name):
    """How often the pictures, their pts and their dts step back; the first pts; the steps between pts."""
    with av.open(name) as file:
        frames = [(f.pts * f.time_base, f.dts, f.to_ndarray(format="gray").mean()) for f in file.decode(video=0)]
    back = lambda values: sum(b < a for a, b in zip(values, values[1:]))
    times = [round(float(f[0]) * FPS) for f in frames]
    grown = [f[1] for f in frames if f[1] is not None]
    return back([f[2] for f in frames]), back(times), back(grown), times


seen = {}
for name, codec, b_frames, sound in (
    ("h264_b.avi", "libx264", 2, "pcm_s16le"), ("mpeg4_b.avi", "mpeg4", 2, "pcm_s16le"), ("mpeg4_mp3.avi", "mpeg4", 0, "libmp3lame"),
    ("mpeg4_pcm.avi", "mpeg4", 0, "pcm_s16le"), ("h264_b.mkv", "libx264", 2, "pcm_s16le"), ("mpeg4_mp3.mkv", "mpeg4", 0, "libmp3lame"),
):
    write(name, codec, b_frames, sound)
    seen[name] = read(name)
    print(f"{name:14} steps back: pictures {seen[name][0]}, pts {seen[name][1]}, dts {seen[name][2]}; pts in frames {seen[name][3][:8]}")
print("PyAV", av.__version__, "libavformat", av.library_versions["libavformat"])
print("expected by most: no step back, 0 1 2 3 everywhere; stated: pts step back or start late in AVI, dts never step back")
assert all(s[0] == s[2] == 0 for s in seen.values())
assert seen["h264_b.avi"][1] > 5 and seen["h264_b.avi"][3][0] > 0
assert seen["mpeg4_b.avi"][3][0] > 0
assert seen["mpeg4_mp3.avi"][3][:4] == [0, 2, 3, 4]
even = list(range(COUNT))
assert seen["mpeg4_pcm.avi"][3] == seen["h264_b.mkv"][3] == seen["mpeg4_mp3.mkv"][3] == even
print("as stated")
PY

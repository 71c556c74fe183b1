#!/usr/bin/env bash
# Guess: to import librosa for its short-time Fourier transform (NumPy's FFT) compiles nothing, and writes nothing into site-packages.
# Real: librosa.core.spectrum has another of its modules compile a function with Numba at import (zero crossings, which have no part in
# the transform), and keeps machine code in __pycache__ beside its sources, for whoever imports it next; the first import takes
# several times as long as the second. librosa 0.11.0, numba 0.68.1, NumPy 2.4.6; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
unset NUMBA_CACHE_DIR
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install librosa==0.11.0 numba==0.68.1 numpy==2.4.6
cat > s.py <<'PY'
import pathlib, subprocess, sys, time

site = next(p for p in map(pathlib.Path, sys.path) if p.name == "site-packages")

def compiled():
    return sorted({f.name.split("-")[-2 if f.name.startswith("guf-") else 0] for f in (site / "librosa").rglob("*.nbc")})

def imported():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import librosa.core.spectrum"], check=True)
    return time.perf_counter() - start

subprocess.run([sys.executable, "-m", "compileall", "-q", str(site)], check=False)  # so that Python's own bytecode is there
before = compiled()
first, second = imported(), imported()
print("compiled before:", before)
print("compiled by the import, and written into site-packages:", compiled())
print(f"the first import took {first:.1f} s, the second {second:.1f} s")
print("expected by most: nothing is compiled or written; stated: a function of another module is")
assert not before and compiled(), (before, compiled())
assert not any("stft" in name for name in compiled())
assert first > 1.5 * second, (first, second)
print("as stated")
PY
v/bin/python s.py

#!/usr/bin/env bash
# Guess: torch.mm in float32 uses AVX-512 where the processor has it (torch says so: "CPU capability AVX512"), and MKL_ENABLE_INSTRUCTIONS holds it to less.
# Real: on an AMD processor the MKL in PyTorch's wheels runs a kernel of its own for Zen, of 256-bit vectors, with AVX-512 in the processor and whatever
# MKL_ENABLE_INSTRUCTIONS asks for (AVX512, AVX2, SSE4_2); MKL_VERBOSE names no instruction set there. oneDNN, in the same library,
# uses AVX-512. So "eager" on such a machine is AVX2. torch 2.13.0 (CPU), MKL 2024.0.2, an AMD Zen 5; 2026-11-28.
set -euo pipefail
grep -q AuthenticAMD /proc/cpuinfo && grep -q avx512f /proc/cpuinfo || { echo "this is of AMD processors with AVX-512"; exit 1; }
command -v objdump >/dev/null || { echo "needs nm and objdump (binutils)"; exit 1; }
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install torch==2.13.0 numpy
cat > k.py <<'PY'
"""Where the processor is while torch.mm runs: a timer's signal sees the address, the library's symbols give it a name."""
import bisect, collections, ctypes, os, signal, subprocess, sys
import torch

library = os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so")
symbols = sorted((int(a, 16), n) for a, t, n in (l.split() for l in subprocess.run(["nm", library], capture_output=True, text=True).stdout.splitlines() if len(l.split()) == 3) if t in "tT")
base = min(int(l.split("-")[0], 16) for l in open("/proc/self/maps") if l.rstrip().endswith("libtorch_cpu.so"))
seen = collections.Counter()

@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def handler(number, info, context):
    rip = ctypes.c_uint64.from_address(context + 40 + 16 * 8).value  # ucontext_t: the registers begin at 40, RIP is the 17th
    at = bisect.bisect(symbols, (rip - base, "~")) - 1
    seen[symbols[at][1] if at >= 0 else "?"] += 1

class Action(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p)]

torch.set_num_threads(1)
a = torch.randn(1024, 1024)
torch.mm(a, a)
action = Action(ctypes.cast(handler, ctypes.c_void_p), (ctypes.c_ulong * 16)(), 4 | 0x10000000, None)  # SA_SIGINFO | SA_RESTART
ctypes.CDLL(None).sigaction(signal.SIGPROF, ctypes.byref(action), None)
signal.setitimer(signal.ITIMER_PROF, 0.005, 0.005)
for _ in range(60):
    torch.mm(a, a)
signal.setitimer(signal.ITIMER_PROF, 0)
print(torch.backends.cpu.get_cpu_capability(), os.environ.get("MKL_ENABLE_INSTRUCTIONS", "not set"), seen.most_common(1)[0])
PY
for set in "" AVX512 AVX2 SSE4_2; do MKL_ENABLE_INSTRUCTIONS=$set v/bin/python k.py; done | tee out
echo 'import torch; a = torch.ones(8, 8); torch.mm(a, a)' | MKL_VERBOSE=1 v/bin/python - | tee verbose
echo 'import torch; torch.conv2d(torch.ones(8, 64, 32, 32), torch.ones(64, 64, 3, 3))' | ONEDNN_VERBOSE=1 v/bin/python - | grep -m1 cpu,isa | tee onednn
kernel=mkl_blas_def_sgemm_kernel_0_zen library=$(v/bin/python -c 'import torch; print(torch.__path__[0])')/lib/libtorch_cpu.so
start=0x$(nm "$library" | grep " $kernel\$" | cut -d' ' -f1)
objdump -d --start-address=$start --stop-address=$((start + 4096)) "$library" >code
echo "$kernel: $(grep -c 'vfmadd.*%ymm' code) multiply-adds of 256 bits and $(grep -c '%zmm' code || true) uses of 512 in its first 4 KB"
echo "expected by most: an AVX-512 kernel, and others where others are asked for; stated: $kernel always"
test "$(grep -c "AVX512 .*$kernel" out)" = 4
test "$(grep -c 'vfmadd.*%ymm' code)" -gt 50
if grep -q '%zmm' code; then exit 1; fi
grep -q 'Intel(R) Architecture processors' verbose
if grep -q AVX verbose; then exit 1; fi
grep -q AVX-512 onednn
echo "as stated"

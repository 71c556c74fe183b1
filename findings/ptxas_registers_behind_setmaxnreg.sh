#!/usr/bin/env bash
# Guess: behind two branches with setmaxnreg, what only the warps run that took 232 registers may use those, or at least the 168 a launch gives.
# Real: ptxas has 40 for it, the fewest of any branch that leads there, and spills without a warning: 96 numbers a thread go to memory.
# The same instructions within the branch of 232 spill nothing, nor do they behind branches without setmaxnreg, in 128 registers.
# ptxas of CUDA 13.0.88 (the wheel nvidia-cuda-nvcc), sm_90a; 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install --no-deps nvidia-cuda-nvcc==13.0.88
v/bin/python - <<'PY'
import re, subprocess
from pathlib import Path

N = 96  # numbers that are in registers together
ptxas = next(Path("v").rglob("bin/ptxas"))
ptxas.chmod(0o755)
work = [f"ld.global.f32 %f{i}, [%p+{1536 * i}];" for i in range(N)]
work += ["bar.warp.sync -1;"]  # no store moves before a load
work += [f"mul.f32 %g, %f{i}, %f{(37 * i + 1) % N}; st.global.f32 [%p+{1536 * i}], %g;" for i in range(N)]

def registers(change: str, number: int, asked: bool) -> str:
    return f"setmaxnreg.{change}.sync.aligned.u32 {number};" if asked else ""

def spilled(where: str, asked: bool) -> tuple[int, int]:
    """Bytes that are spilled, and registers, where the work stands within the second branch or behind both."""
    within, behind = (work, []) if where == "within" else ([], ["@%few bra END;", *work])
    text = "\n".join([
        ".version 8.0", ".target sm_90a", ".address_size 64",
        ".visible .entry kernel(.param .u64 x) .maxntid 384, 1, 1 .minnctapersm 1", "{",
        f".reg .f32 %f<{N}>, %g; .reg .u32 %t, %s; .reg .u64 %p, %o; .reg .pred %few;",
        "ld.param.u64 %p, [x]; mov.u32 %t, %tid.x; mul.wide.u32 %o, %t, 4; add.u64 %p, %p, %o;",
        "setp.lt.u32 %few, %t, 128;", "@%few bra FEW;",
        registers("inc", 232, asked), "mov.b32 %s, 1;", *within, "bra.uni JOIN;",
        "FEW:", registers("dec", 40, asked), "mov.b32 %s, 0;",
        "JOIN:", "st.global.u32 [%p+4096], %s;", *behind, "END: ret;", "}",
    ])
    Path("k.ptx").write_text(text)
    said = subprocess.run([ptxas, "-arch=sm_90a", "-v", "k.ptx", "-o", "k.cubin"], check=True, capture_output=True, text=True).stderr
    assert "warning" not in said.lower(), said
    return int(re.search(r"(\d+) bytes spill stores", said)[1]), int(re.search(r"Used (\d+) registers", said)[1])

found = {(where, asked): spilled(where, asked) for where in ("within", "behind") for asked in (True, False)}
for (where, asked), (spills, used) in found.items():
    print(f"{where:6} the branch, {'with' if asked else 'without'} setmaxnreg: {spills} bytes spilled, {used} registers")
assert found["within", True] == (0, 168) and found["behind", False][0] == 0
assert found["behind", True][0] > 4 * N / 2 and found["behind", True][1] == 168
print("as stated")
PY

#!/usr/bin/env bash
# Guess: kernel-abi-check, which says whether a kernel for Hugging Face's hub loads on manylinux_2_28, looks at what the dynamic linker looks
# at: .dynsym and the versions beside it. So a library may be stripped, as installers and packagers do, and linked by any linker.
# Real: it looks at .symtab, where GNU ld writes versions into names and strip takes all away: a library that asks for a symbol of
# glibc 2.34 is refused, and the same one stripped, or linked by LLVM's linker, is passed. kernel-abi-check 0.14.1, GCC 12.2,
# binutils 2.40 and glibc 2.36 of Debian 12, Zig 0.15.2 (LLVM 20); 2026-11-28.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT; cd "$tmp"
python3 -m venv v && v/bin/pip -q --disable-pip-version-check install kernel-abi-check==0.14.1 ziglang==0.15.2
echo '#include <pthread.h>
int start(pthread_t *thread) { return pthread_create(thread, 0, 0, 0); }' > start.c
gcc -shared -fPIC -o whole.so start.c
strip -o stripped.so whole.so
v/bin/python -m ziglang cc -target x86_64-linux-gnu.2.34 -shared -fPIC -o llvm.so start.c 2> /dev/null
v/bin/python - <<'PY'
from pathlib import Path

from kernel_abi_check import ObjectFile

found = {}
for name in ("whole", "stripped", "llvm"):
    assert b"GLIBC_2.34" in Path(f"{name}.so").read_bytes(), name
    found[name] = [symbol.name for symbol in ObjectFile(f"{name}.so").check_manylinux("manylinux_2_28")]
print(found)
assert found == {"whole": ["pthread_create"], "stripped": [], "llvm": []}
print("as stated")
PY

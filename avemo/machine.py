"""What figures of time depend on, and Python alone does not know."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")

# Makers give processors of several designs one name ("AMD EPYC"), and virtual machines hide the rest of it. What is
# left is the number of the design: AMD's families and models as Linux tells them apart (arch/x86/kernel/cpu/amd.c).
# archspec 0.2.7 goes by flags, some of which virtual machines hide: it takes a Zen 5 in one for a generic x86_64_v4.
_AMD = {
    23: (("Zen", (range(0x30), range(0x50, 0x60))), ("Zen 2", (range(0x30, 0x50), range(0x60, 0xB0)))),
    25: (
        ("Zen 3", (range(0x10), range(0x20, 0x60))),
        ("Zen 4", (range(0x10, 0x20), range(0x60, 0xB0))),
    ),
    26: (
        ("Zen 5", (range(0x50), range(0x60, 0x80))),
        ("Zen 6", (range(0x50, 0x60), range(0x80, 0xD0))),
    ),
}  # fmt: skip
# Intel's models of family 6 (arch/x86/include/asm/intel-family.h), those with AVX2.
_INTEL = {
    "Haswell": (0x3C, 0x3F, 0x45, 0x46),
    "Broadwell": (0x3D, 0x47, 0x4F, 0x56),
    "Skylake": (0x4E, 0x5E),
    "Kaby Lake": (0x8E, 0x9E),
    "Comet Lake": (0xA5, 0xA6),
    "Ice Lake": (0x6A, 0x6C, 0x7D, 0x7E),
    "Tiger Lake": (0x8C, 0x8D),
    "Rocket Lake": (0xA7,),
    "Alder Lake": (0x97, 0x9A),
    "Raptor Lake": (0xB7, 0xBA, 0xBF),
    "Meteor Lake": (0xAA, 0xAC),
    "Arrow Lake": (0xB5, 0xC5, 0xC6),
    "Lunar Lake": (0xBD,),
    "Gracemont": (0xBE,),
    "Sapphire Rapids": (0x8F,),
    "Emerald Rapids": (0xCF,),
    "Granite Rapids": (0xAD, 0xAE),
    "Sierra Forest": (0xAF,),
}
# Skylake's server model served three generations, told apart by their stepping.
_SKYLAKE_SERVERS = (("Skylake-SP", range(5)), ("Cascade Lake", range(5, 8)), ("Cooper Lake", range(8, 16)))  # fmt: skip
# Implementer and part of ARM's own designs, and of some that others made.
_ARM = {
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse N1",
    (0x41, 0xD40): "Neoverse V1",
    (0x41, 0xD49): "Neoverse N2",
    (0x41, 0xD4F): "Neoverse V2",
    (0x41, 0xD83): "Neoverse V3",
    (0x41, 0xD8E): "Neoverse N3",
    (0xC0, 0xAC3): "Ampere-1",
}
_MAKERS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}
# What the C++ kernels ask for, widest first.
_WIDE = (
    ("AVX-512", {"avx512f", "avx512dq", "avx512bw", "avx512vl"}),
    ("AVX2", {"avx2", "fma", "f16c"}),
    ("SVE", {"sve"}),
    ("NEON", {"asimd"}),
)

_SETS = {"avx512_bf16": "AVX-512", "avx512": "AVX-512", "avx2": "AVX2"}  # of the kernels


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Processor:
    """A processor, by what matters to a kernel.

    Attributes:
        name: as its maker has it, such as "AMD EPYC"; several designs may have the same.
        family: maker and design, such as "AMD Zen 3"; "" where it is not known.
        instruction_set: the widest that it runs of "AVX-512", "AVX2", "SVE" and "NEON"; "" where it has none of them.
    """

    name: str
    family: str
    instruction_set: str

    @property
    def slug(self) -> str:
        """For names of files: "amd-zen3-avx2"."""
        return slugged(self.family or self.name, self.instruction_set)


def title(machine: Mapping[str, Any]) -> str:
    """What results say of a processor as people call it: "AMD EPYC (Zen 3, AVX2), 2 threads".

    Args:
        machine: with the entries "processor" and "threads"; where they are known, "family" and the kernels'
            "instruction_set"; and "held", if everything is held to that.
    """
    name, isa = str(machine["processor"]), str(machine.get("instruction_set") or "")
    maker, _, design = str(machine.get("family") or "").partition(" ")
    design = design if maker.lower() in name.lower() else f"{maker} {design}"
    isa = _SETS.get(isa, isa)
    known = ", ".join(
        fact for fact in (design, "held to " * bool(machine.get("held")) + isa) if fact
    )
    count = machine["threads"]
    return f"{name}{f' ({known})' * bool(known)}, {count} {'thread' if count == 1 else 'threads'}"


def slugged(family: str, *facts: str) -> str:
    """A family and what is known beside it as part of a file's name; a generation's number belongs to its word."""
    joined = re.sub(r"(?<=[a-z]) (?=\d)", "", family)
    return slug(" ".join([joined, *(fact.replace("-", "") for fact in facts)]))


def slug(name: str) -> str:
    """A device's name as part of a file's name."""
    words = re.sub(r"\((r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def processor() -> Processor:
    """The processor of this machine, as Linux has it; elsewhere what the system and Python know."""
    try:
        return described(CPUINFO.read_text("utf-8"))
    except OSError:
        return _elsewhere()


def described(cpuinfo: str) -> Processor:
    """The processor that a text such as Linux' /proc/cpuinfo describes; of its first core, where they differ."""
    first = cpuinfo.strip().split("\n\n")[0]
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in first.splitlines())
    }
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    isa = next((name for name, needed in _WIDE if needed <= flags), "")
    family = _family(fields)
    return Processor(fields.get("model name") or family or platform.machine(), family, isa)


def _family(fields: Mapping[str, str]) -> str:
    if "CPU implementer" in fields:
        part = int(fields["CPU implementer"], 0), int(fields.get("CPU part", "0"), 0)
        design = _ARM.get(part, "")
        return f"ARM {design}" if part[0] == 0x41 and design else design
    maker = _MAKERS.get(fields.get("vendor_id", ""), "")
    family, model, stepping = (
        int(value) if (value := fields.get(key, "")).isdecimal() else -1
        for key in ("cpu family", "model", "stepping")
    )
    design = ""
    if maker == "AMD":
        design = _among(_AMD.get(family, ()), model)
    elif maker == "Intel" and family == 6 and model == 0x55:
        design = next((name for name, steps in _SKYLAKE_SERVERS if stepping in steps), "")
    elif maker == "Intel" and family == 6:
        design = next((name for name, models in _INTEL.items() if model in models), "")
    return f"{maker} {design}" if design else ""


def _among(designs: tuple[tuple[str, tuple[range, ...]], ...], model: int) -> str:
    return next((name for name, ranges in designs if any(model in r for r in ranges)), "")


def _elsewhere() -> Processor:
    """macOS says which of Apple's processors there is, and Python says little about any other."""
    name = platform.processor() or platform.machine()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        name = done.stdout.strip() or name
    neon = platform.machine().lower() in ("arm64", "aarch64")
    return Processor(name, name if name.startswith("Apple") else "", "NEON" if neon else "")

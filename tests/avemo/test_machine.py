"""Processors are told apart by their design, whatever their makers call them."""

import pytest

from avemo.machine import described, processor, slug, title

AVX2 = "fpu sse4_2 avx fma f16c avx2"
AVX512 = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"


def cpuinfo(vendor: str, family: int, model: int, name: str, flags: str, stepping: int = 1) -> str:
    """As Linux writes it; a second core is not looked at."""
    core = (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: {name}\nstepping\t: {stepping}\nflags\t\t: {flags}\n\n"
    )
    return core + core.replace(": 0", ": 1").replace(name, "another")


@pytest.mark.parametrize(
    ("text", "family", "said"),
    [
        (cpuinfo("AuthenticAMD", 23, 0x31, "AMD EPYC", AVX2), "AMD Zen 2", "amd-zen2-avx2"),
        (cpuinfo("AuthenticAMD", 25, 0x01, "AMD EPYC", AVX2), "AMD Zen 3", "amd-zen3-avx2"),
        (cpuinfo("AuthenticAMD", 25, 0x21, "AMD Ryzen", AVX2), "AMD Zen 3", "amd-zen3-avx2"),
        (cpuinfo("AuthenticAMD", 25, 0x11, "AMD EPYC", AVX512), "AMD Zen 4", "amd-zen4-avx512"),
        (cpuinfo("AuthenticAMD", 25, 0x61, "AMD Ryzen", AVX2), "AMD Zen 4", "amd-zen4-avx2"),
        (cpuinfo("AuthenticAMD", 26, 2, "AMD EPYC", AVX512), "AMD Zen 5", "amd-zen5-avx512"),
        (cpuinfo("AuthenticAMD", 99, 2, "AMD EPYC", AVX512), "", "amd-epyc-avx512"),
        (
            cpuinfo("GenuineIntel", 6, 0x8F, "Intel(R) Xeon(R) Processor", AVX512),
            "Intel Sapphire Rapids",
            "intel-sapphire-rapids-avx512",
        ),
        (
            cpuinfo("GenuineIntel", 6, 0x55, "Intel(R) Xeon(R) Processor", AVX512, 7),
            "Intel Cascade Lake",
            "intel-cascade-lake-avx512",
        ),
        (
            cpuinfo("GenuineIntel", 6, 0x55, "Intel(R) Xeon(R) Processor", AVX512, 4),
            "Intel Skylake-SP",
            "intel-skylake-sp-avx512",
        ),
        (
            cpuinfo("GenuineIntel", 6, 1, "Intel(R) Xeon(R) Processor", "fpu sse2"),
            "",
            "intel-xeon-processor",
        ),
        (
            "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n",
            "ARM Neoverse V1",
            "arm-neoverse-v1-sve",
        ),
        (
            "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0xc0\nCPU part\t: 0xac3\n",
            "Ampere-1",
            "ampere-1-neon",
        ),
    ],
)
def test_the_design_is_told_by_its_numbers(text: str, family: str, said: str) -> None:
    found = described(text)
    assert (found.family, found.slug) == (family, said)


@pytest.mark.parametrize("text", ["", "processor\t: 0\n", "cpu family\t: \nmodel\t: x\n"])
def test_what_says_nothing_has_a_name_all_the_same(text: str) -> None:
    found = described(text)
    assert found.family == found.instruction_set == ""
    assert found.slug == slug(found.name) != ""


def test_titles_say_what_the_name_does_not() -> None:
    machine = {"processor": "AMD EPYC", "threads": 2}
    assert title(machine) == "AMD EPYC, 2 threads"
    assert title(machine | {"threads": 1}) == "AMD EPYC, 1 thread"
    machine |= {"family": "AMD Zen 3", "instruction_set": "avx2"}
    assert title(machine) == "AMD EPYC (Zen 3, AVX2), 2 threads"
    assert title(machine | {"held": "kernels: avx2"}) == "AMD EPYC (Zen 3, held to AVX2), 2 threads"
    other = {"processor": "Ampere Altra", "family": "ARM Neoverse N1", "threads": 4}
    assert title(other) == "Ampere Altra (ARM Neoverse N1), 4 threads"


def test_this_machine_has_a_name() -> None:
    assert slug(processor().slug) == processor().slug != ""

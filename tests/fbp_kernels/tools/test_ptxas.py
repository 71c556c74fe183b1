"""What the command reads from the CUDA compiler's output, and what it calls wrong."""

import shutil
from pathlib import Path

import pytest

from fbp_kernels.tools import ptxas
from fbp_kernels.tools.ptxas import Bounds, Usage

TEXT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN12_GLOBAL__N_14wideIfEEvPT_' for 'sm_90a'
ptxas info    : Function properties for _ZN12_GLOBAL__N_14wideIfEEvPT_
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Compile time = 85.0 ms
ptxas info    : Compiling entry function '_Z4thinv' for 'sm_90a'
ptxas info    : Function properties for _Z4thinv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1152 bytes smem, 376 bytes cmem[0]
"""

PTX = """\
.visible .entry _ZN12_GLOBAL__N_14wideIfEEvPT_(
\t.param .u64 _ZN12_GLOBAL__N_14wideIfEEvPT__param_0
)
.maxntid 32, 8, 1
.minnctapersm 2
{
\tret;
}
.visible .entry _Z4thinv()
{
\tret;
}
"""


def test_usage_is_read() -> None:
    assert ptxas.usages(TEXT) == [
        Usage("_ZN12_GLOBAL__N_14wideIfEEvPT_", 128, 12, 8, 16, 0),
        Usage("_Z4thinv", 40, 0, 0, 0, 1152),
    ]


def test_a_kernel_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="compiled 2 kernels, 1 could be read"):
        ptxas.usages(TEXT.replace("Used 40 registers", "Used some registers"))


def test_launch_bounds_are_read() -> None:
    assert ptxas.bounds(PTX) == {
        "_ZN12_GLOBAL__N_14wideIfEEvPT_": Bounds(256, 2),
        "_Z4thinv": Bounds(1024, 0),
    }


@pytest.mark.parametrize(
    ("usage", "bound", "said"),
    [
        (Usage("", 128, 0, 0, 0, 48 << 10), Bounds(256, 2), []),
        (Usage("", 128, 12, 8, 16, 0), Bounds(256, 2), ["spills 12 bytes, loads 8"]),
        (Usage("", 128, 0, 0, 64, 0), Bounds(256, 2), ["keeps 64 bytes in local memory"]),
        (Usage("", 136, 0, 0, 0, 0), Bounds(256, 2), ["136 registers of 256 threads"]),
        (Usage("", 72, 0, 0, 0, 0), Bounds(), ["72 registers of 1024 threads"]),
        (Usage("", 32, 0, 0, 0, 49153), Bounds(256), ["49153 bytes of static shared memory"]),
    ],
)
def test_problems(usage: Usage, bound: Bounds, said: list[str]) -> None:
    found = ptxas.problems(usage, bound)
    assert len(found) == len(said)
    assert all(part in problem for part, problem in zip(said, found, strict=True))


@pytest.mark.parametrize(
    ("architecture", "most"), [("sm_80", 163 << 10), ("sm_90a", 227 << 10), ("sm_100", 227 << 10)]
)
def test_static_and_dynamic_shared_memory_have_one_limit(architecture: str, most: int) -> None:
    usage = Usage("", 32, 0, 0, 0, 128)
    assert ptxas.problems(usage, Bounds(256), most - 128, architecture) == ()
    (said,) = ptxas.problems(usage, Bounds(256), most - 127, architecture)
    assert f"128 bytes of static and {most - 127} of dynamic shared memory" in said


def test_names_lose_namespaces_and_parameters() -> None:
    name = "void fbp::cuda::(anonymous namespace)::pool<fbp::cuda::Tile<float, (bool)1>>(fbp::View)"
    assert ptxas.short_name(name) == "pool<Tile<float, (bool)1>>"


@pytest.fixture
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("nvcc is not on the PATH")
    return found


def test_the_compiler_agrees(nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "one.cu"
    source.write_text("""
        namespace fbp::cuda { namespace {
        template <class T> __global__ __launch_bounds__(64, 3) void picks(T* out, int i) {
          T own[32];
          for (int j = 0; j < 32; ++j) own[(i * j) % 32] = out[j];
          out[i] = own[i];
        }
        template __global__ void picks<float>(float*, int);
        } }
    """)
    (row,) = ptxas.compile_source(nvcc, source, "sm_80")
    assert (row.architecture, row.source, row.kernel) == ("sm_80", "one.cu", "picks<float>")
    assert row.bounds == Bounds(64, 3)
    assert 8 <= row.usage.registers <= 255
    assert row.problems == ("keeps 128 bytes in local memory",)


def test_what_launches_ask_for_is_read(nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "one.cu"
    source.write_text("""
        #include "cuda/launch.h"
        namespace fbp::cuda { namespace {
        template <class T> __global__ __launch_bounds__(64) void asks(T* out) {
          __shared__ T own[32];
          own[threadIdx.x % 32] = out[threadIdx.x];
          __syncthreads();
          out[0] = own[5];
        }
        template <class T> __global__ void fits(T* out) { out[0] = 1; }
        constexpr std::size_t half(int most) { return most / 2; }
        template <class T> __global__ void overlooks(T* out) {
          __shared__ T own[32];
          own[threadIdx.x % 32] = out[threadIdx.x];
          __syncthreads();
          out[0] = own[5];
        }
        constexpr std::size_t all(int most) { return most; }
        }
        void run(int* out, void* stream, std::size_t any) {
          FBP_LAUNCH(asks<int>, 1, 64, 1000, stream, out);
          FBP_LAUNCH(asks<int>, 2, 64, (163 << 10) - 100, stream, out);
          FBP_LAUNCH_FITTED(fits<int>, half, 1, 1, any, stream, out);
          FBP_LAUNCH_FITTED(overlooks<int>, all, 1, 1, any, stream, out);
        } }
    """)
    (asks, fits, overlooks) = ptxas.collect(nvcc, [source], ["sm_80"], 1)
    assert (asks.kernel, asks.dynamic) == ("asks<int>", (163 << 10) - 100)
    assert (fits.kernel, fits.dynamic, fits.problems) == ("fits<int>", 163 << 9, ())
    said = [problem for row in (asks, overlooks) for problem in row.problems]
    assert said[0].startswith("128 bytes of static and 166812 of dynamic shared memory are more")
    assert said[1].startswith("128 bytes of static and 166912 of dynamic shared memory are more")
    (asks, fits, _) = ptxas.collect(nvcc, [source], ["sm_90a"], 1)
    assert (asks.problems, fits.dynamic) == ((), 227 << 9)


SERIAL = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in '_Z4thinv'"
IGNORED = "ptxas info    : setmaxnreg ignored to maintain minimum register requirements"


def test_what_the_assembler_says_against_its_code_is_read() -> None:
    assert ptxas.notes(TEXT) == []
    first, second = ptxas.notes(f"{SERIAL}\n{TEXT}{IGNORED}\n")
    assert "serialized in '_Z4thinv'" in first
    assert "setmaxnreg ignored" in second


WARPGROUP = """
    #include "cuda/wgmma.h"
    namespace fbp::cuda {{ namespace {{
    __global__ __launch_bounds__(128) void multiplies(float* out, std::uint64_t a, std::uint64_t b, int n) {{
      {sums} d;
      constexpr int count = sizeof d / sizeof *d;
      for (int i = 0; i < count; ++i) d[i] = out[i];
      wgmma_fence();
      for (int i = 0; i < n; ++i) {{
        {product};
        {between}
      }}
      wgmma_commit();
      wgmma_wait_for_all(d);
      for (int i = 0; i < count; ++i) out[i] = d[i];
    }} }}
    void run(float* out) {{ multiplies<<<1, 128>>>(out, 0, 0, 3); }} }}
"""


IN_SHARED_MEMORY = ("WgmmaSums", "wgmma<__half, Along::depth, Along::depth>(d, a, b, true)")
IN_REGISTERS = ("Tf32Sums", "wgmma_tf32(d, {1, 2, 3, 4}, b, true)")


@pytest.mark.parametrize(
    ("sums", "product", "between", "serial"),
    [
        (*IN_SHARED_MEMORY, "", False),
        (*IN_SHARED_MEMORY, "d[5] += out[threadIdx.x];", True),
        (*IN_REGISTERS, "", False),
    ],
)
def test_products_of_warpgroups_must_not_be_serialised(
    nvcc: str, tmp_path: Path, sums: str, product: str, between: str, serial: bool
) -> None:
    source = tmp_path / "one.cu"
    source.write_text(WARPGROUP.format(sums=sums, product=product, between=between))
    (row,) = ptxas.compile_source(nvcc, source, "sm_90a")
    assert any("wgmma" in problem for problem in row.problems) == serial
    assert not any("HGMMA" in problem for problem in row.problems)


def test_a_kernel_of_another_architecture_asks_for_nothing() -> None:
    entry = ".entry traps(\n)\n{\n\n\t// begin inline asm\n\ttrap;\n\tret;\n}\n"
    assert ptxas.is_left_out(entry + PTX, "traps")
    assert not ptxas.is_left_out(entry + PTX, "_Z4thinv")


def test_a_word_of_a_launch_that_belongs_to_no_kernel_is_an_error() -> None:
    word = ".global .align 8 .u64 _Z14dynamic_sharedILm4EE = 4;"
    with pytest.raises(ValueError, match="belongs to none of the kernels"):
        ptxas.asked(PTX + word, "sm_80")


def test_a_launch_that_fits_no_device_of_the_architecture_is_an_error() -> None:
    word = ".global .align 8 .u64 _Z13fitted_sharedIXadL_Z4thinvEELi166912ELm5EE = 5;"
    assert ptxas.asked(PTX + word, "sm_80") == {"_Z4thinv": 5}
    with pytest.raises(ValueError, match=r"of _Z4thinv fit the device, .* has 232448 bytes"):
        ptxas.asked(PTX + word, "sm_90a")


def test_a_warning_is_an_error(nvcc: str, tmp_path: Path) -> None:
    source = tmp_path / "one.cu"
    source.write_text("__global__ void unused(int* out) { int never; out[0] = 1; }")
    with pytest.raises(RuntimeError, match="never"):
        ptxas.compile_source(nvcc, source, "sm_80")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sm_70"], "architecture is sm_70, expected sm_80, sm_90a, sm_100"),
        (["--sources", "no.cu"], "there is no source no.cu"),
        (["--nvcc", "no-such-compiler"], "there is no no-such-compiler"),
    ],
)
def test_arguments_that_do_not_fit(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--nvcc" not in arguments and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on the PATH")
    with pytest.raises(SystemExit):
        ptxas.main(arguments)
    assert message in capsys.readouterr().err

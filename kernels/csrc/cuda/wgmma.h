// Products of the tensor cores that a warpgroup, 128 threads, asks for and waits for: 64 rows by
// 256, 64 or 32 columns by 16, or of TF32 256 or 128 columns by 8, operands in shared memory, sums
// in registers. Tests put a header of the same path before this one.
//
// Thread t of a warpgroup has, of the sums, the rows r = 16 * (t / 32) + t % 32 / 4 and r + 8, and
// the columns c = 8 * j + 2 * (t % 4) and c + 1: d[4 * j + i] is (r + 8 * (i / 2), c + i % 2).

#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common.h"

namespace fbp::cuda {

constexpr int kWgmmaRows = 64, kWgmmaColumns = 256, kWgmmaDepth = 16;
constexpr int kWgmmaSomeColumns = 64, kWgmmaFewColumns = 32;
constexpr int kTf32Columns = 128, kTf32Depth = 8;
constexpr int kWarpgroup = 128;  // threads

// Of a thread, for so many columns.
template <int kColumns>
constexpr int kSumsOf = kWgmmaRows * kColumns / kWarpgroup;
constexpr int kWgmmaSums = kSumsOf<kWgmmaColumns>;

using WgmmaSums = float[kWgmmaSums];
using WgmmaSomeSums = float[kSumsOf<kWgmmaSomeColumns>];
using WgmmaFewSums = float[kSumsOf<kWgmmaFewColumns>];
using Tf32Sums = float[kSumsOf<kTf32Columns>];

// Before the first product after a wait: registers are as the thread has left them.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes the group of the products since the last one.
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until all groups but the last are done.
__device__ inline void wgmma_wait_for_earlier() {
  asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
}

// Until all groups are done; the sums are only then to be touched.
template <int kSums>
__device__ inline void wgmma_wait_for_all(float (&d)[kSums]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define FBP_TEN(t)                                                                       \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t \
  "8,"                                                                                   \
  " %" #t "9, "
#define FBP_SUMS                                                                             \
  "{" FBP_TEN() FBP_TEN(1) FBP_TEN(2) FBP_TEN(3) FBP_TEN(4) FBP_TEN(5) FBP_TEN(6) FBP_TEN(7) \
      FBP_TEN(8) FBP_TEN(9) FBP_TEN(10)                                                      \
          FBP_TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127}"
#define FBP_FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FBP_SIXTEEN(i) FBP_FOUR(i), FBP_FOUR(i + 4), FBP_FOUR(i + 8), FBP_FOUR(i + 12)
#define FBP_WGMMA(type)                                                                     \
  asm volatile(                                                                             \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                         \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " " FBP_SUMS             \
      ", %128, %129, p, 1, 1, %131, %132;\n}"                                               \
      : FBP_SIXTEEN(0), FBP_SIXTEEN(16), FBP_SIXTEEN(32), FBP_SIXTEEN(48), FBP_SIXTEEN(64), \
        FBP_SIXTEEN(80), FBP_SIXTEEN(96), FBP_SIXTEEN(112)                                  \
      : "l"(a), "l"(b), "r"(static_cast<int>(more)), "n"(A == Along::other),                \
        "n"(B == Along::other))

// Adds a product to d, or to nothing where there is no `more`. The operands, a (64, 16) and
// b (16, 256), are told by matrix descriptors, and are contiguous along the depth or across it.
template <class T, Along A, Along B>
__device__ inline void wgmma(WgmmaSums& d, std::uint64_t a, std::uint64_t b, bool more) {
  if constexpr (std::is_same_v<T, __half>) {
    FBP_WGMMA("f16");
  } else {
    FBP_WGMMA("bf16");
  }
}

#define FBP_WGMMA_SOME(type)                                                                \
  asm volatile(                                                                             \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                          \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" FBP_TEN() FBP_TEN(1) \
          FBP_TEN(2) "%30, %31}, %32, %33, p, 1, 1, %35, %36;\n}"                           \
      : FBP_SIXTEEN(0), FBP_SIXTEEN(16)                                                     \
      : "l"(a), "l"(b), "r"(static_cast<int>(more)), "n"(A == Along::other),                \
        "n"(B == Along::other))

// The same, b (16, 64).
template <class T, Along A, Along B>
__device__ inline void wgmma(WgmmaSomeSums& d, std::uint64_t a, std::uint64_t b, bool more) {
  if constexpr (std::is_same_v<T, __half>) {
    FBP_WGMMA_SOME("f16");
  } else {
    FBP_WGMMA_SOME("bf16");
  }
}

#define FBP_WGMMA_FEW(type)                                                           \
  asm volatile(                                                                       \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"                                    \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                     \
      " {" FBP_TEN() "%10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1, %19, %20;\n}" \
      : FBP_SIXTEEN(0)                                                                \
      : "l"(a), "l"(b), "r"(static_cast<int>(more)), "n"(A == Along::other),          \
        "n"(B == Along::other))

// The same, b (16, 32).
template <class T, Along A, Along B>
__device__ inline void wgmma(WgmmaFewSums& d, std::uint64_t a, std::uint64_t b, bool more) {
  if constexpr (std::is_same_v<T, __half>) {
    FBP_WGMMA_FEW("f16");
  } else {
    FBP_WGMMA_FEW("bf16");
  }
}

#define FBP_TF32_OPERANDS                                                             \
  "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), \
      "r"(__float_as_uint(a[3])), "l"(b), "r"(static_cast<int>(more))

// The same in TF32, b (8, 128) or (8, 256) along its depth, and a (64, 8) in registers: thread t of
// a warpgroup has rows r, as of the sums, and r + 8, of depth t % 4, and then of depth t % 4 + 4.
// The tensor cores leave out the digits that TF32 does not have.
__device__ inline void wgmma_tf32(Tf32Sums& d, const float (&a)[4], std::uint64_t b, bool more) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32"
      " {" FBP_TEN() FBP_TEN(1) FBP_TEN(2) FBP_TEN(3) FBP_TEN(4)
          FBP_TEN(5) "%60, %61, %62, %63}, {%64, %65, %66, %67}, %68, p, 1, 1;\n}"
      : FBP_SIXTEEN(0), FBP_SIXTEEN(16), FBP_SIXTEEN(32), FBP_SIXTEEN(48)
      : FBP_TF32_OPERANDS);
}
__device__ inline void wgmma_tf32(WgmmaSums& d, const float (&a)[4], std::uint64_t b, bool more) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k8.f32.tf32.tf32 " FBP_SUMS
      ", {%128, %129, %130, %131}, %132, p, 1, 1;\n}"
      : FBP_SIXTEEN(0), FBP_SIXTEEN(16), FBP_SIXTEEN(32), FBP_SIXTEEN(48), FBP_SIXTEEN(64),
        FBP_SIXTEEN(80), FBP_SIXTEEN(96), FBP_SIXTEEN(112)
      : FBP_TF32_OPERANDS);
}

#undef FBP_TF32_OPERANDS
#undef FBP_WGMMA_FEW
#undef FBP_WGMMA_SOME
#undef FBP_WGMMA
#undef FBP_SIXTEEN
#undef FBP_FOUR
#undef FBP_SUMS
#undef FBP_TEN

}  // namespace fbp::cuda

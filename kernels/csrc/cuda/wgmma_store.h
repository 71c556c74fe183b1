// How sums of wgmma become rows of a tensor.

#pragma once

#include <cstring>

#include "cuda/vectors.h"
#include "wgmma_epilogue.h"

namespace fbp::cuda {

// Where the sums of a tile go: row r of the tensor begins at `data + r * stride`.
template <class T>
struct Target {
  T* data;
  i64 stride, rows, columns;
};

// Writes finish(half, column, x) of all sums x of a warp, of which `row` is the first row: four
// neighbouring lanes exchange theirs, so that each has eight columns side by side.
template <class T, int kSums, class Finish>
__device__ inline void store_sums(const float (&sums)[kSums], int row, int column,
                                  const Target<T>& target, const Finish& finish) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  constexpr int kGroups = kSums * kWarpgroup / kWgmmaRows / 8;
  // Where rows begin at multiples of 16 bytes: columns do.
  const bool aligned = reinterpret_cast<std::uintptr_t>(target.data) % kChunkBytes == 0 &&
                       target.stride % kVector<T> == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = row + lane / 4 + 8 * half;
    T* const to = target.data + r * target.stride;
#pragma unroll
    for (int group = 0; group < kGroups; group += 4) {
      u32 words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (group + i) + 2 * half;
        const int c = column + 8 * (group + i) + lane % 4 * 2;
        words[i] = pack<T>(finish(half, c, sums[at]), finish(half, c + 1, sums[at + 1]));
      }
      exchange(words[0], words[1], words[2], words[3]);
      const int c = column + 8 * (group + lane % 4);
      const i64 left = r < target.rows ? smaller(target.columns - c, kVector<T>) : 0;
      if (left <= 0) continue;
      Vector<T> vector;
      memcpy(&vector, words, sizeof vector);
      store_vector(to + c, vector, (1u << left) - 1, aligned && left == kVector<T>);
    }
  }
}

}  // namespace fbp::cuda

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

// Of the 16 rows of a warp, the one of half of a lane's sums; those of float32 are as Tf32Operands
// deals out what it takes from registers.
template <class T>
__device__ inline int row_of_sums(int half) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if constexpr (std::is_same_v<T, float>) {
    return tf32_column(lane) + half;
  } else {
    return lane / 4 + 8 * half;
  }
}

// Of some groups of eight columns of a row, of each of which four neighbouring lanes have two
// columns, a vector for each lane: the lane's begins at column(lane). value(group, i) is what the
// lane has.
template <class T>
struct SideBySide {
  static constexpr int kGroups = 4;

  __device__ static int column(int lane) { return 8 * (lane % 4); }

  template <class Value>
  __device__ static Vector<T> of(const Value& value) {
    u32 words[kGroups];
#pragma unroll
    for (int i = 0; i < kGroups; ++i) words[i] = pack<T>(value(i, 0), value(i, 1));
    exchange(words[0], words[1], words[2], words[3]);
    Vector<T> vector;
    memcpy(&vector, words, sizeof vector);
    return vector;
  }
};

// Of two groups pairs of lanes have two vectors, one of either group.
template <>
struct SideBySide<float> {
  static constexpr int kGroups = 2;

  __device__ static int column(int lane) { return 8 * (lane % 2) + lane % 4 / 2 * 4; }

  template <class Value>
  __device__ static Vector<float> of(const Value& value) {
    const bool second = threadIdx.x % 2 != 0;
    Vector<float> vector;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float here = value(0, i), next = value(1, i);
      const float got = __shfl_xor_sync(0xffffffffu, second ? here : next, 1);
      vector.of[i] = second ? got : here;
      vector.of[2 + i] = second ? next : got;
    }
    return vector;
  }
};

// Writes finish(half, column, x) of all sums x of a warp, of which `row` is the first row: lanes
// exchange theirs, so that each has a vector of columns side by side.
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
    forget(column);  // what is known of the columns would stay in registers for the second half
    const int r = row + row_of_sums<T>(half);
    T* const to = target.data + r * target.stride;
#pragma unroll
    for (int group = 0; group < kGroups; group += SideBySide<T>::kGroups) {
      const auto vector = SideBySide<T>::of([&](int i, int e) {
        return finish(half, column + 8 * (group + i) + lane % 4 * 2 + e,
                      sums[4 * (group + i) + 2 * half + e]);
      });
      const int c = column + 8 * group + SideBySide<T>::column(lane);
      const i64 left = r < target.rows ? smaller(target.columns - c, kVector<T>) : 0;
      if (left > 0) store_vector(to + c, vector, (1u << left) - 1, aligned && left == kVector<T>);
    }
  }
}

}  // namespace fbp::cuda

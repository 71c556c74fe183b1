// The loop of `outer` as compilers make it from vector extensions.

#pragma once

#include "tile.h"

namespace fbp::FBP_ISA {

// All operands are read where they stand, and the next rows of the left one are fetched in the
// loop; see outer_avx2.h.
constexpr bool reads_in_place(i64, i64, i64) { return true; }
constexpr i64 kCopyingTurns = i64{1} << 62;
constexpr bool kFetchesRows = true;
constexpr bool kCopiesInputs = false;

// Rows of a matrix three at a time: x86 addresses have room for a base and once or twice a stride,
// so that `Rows` pointers take a third of the registers.
template <class E, int Rows>
struct RowPointers {
  static constexpr int kBases = (Rows + 2) / 3;
  const char* base[kBases];
  i64 row;

  RowPointers(const E* data, i64 row_) : row(row_ * i64{sizeof(E)}) {
    for (int i = 0; i < kBases; ++i) base[i] = reinterpret_cast<const char*>(data) + 3 * i * row;
  }
  const E* operator[](int r) const { return reinterpret_cast<const E*>(base[r / 3] + r % 3 * row); }
  void advance(i64 bytes) {
#pragma GCC unroll 4
    for (int i = 0; i < kBases; ++i) {
      base[i] += bytes;
      asm("" : "+r"(base[i]));  // or the compiler makes a pointer of each row again, and spills
    }
  }
};

template <class Op, int Rows, int Vectors>
void outer_tile(const OuterTile<Op>& tile) {
  using S = typename Op::Sum;
  using E = typename Op::Element;
  constexpr int W = kWidth<S>;
  Vec<S> sum[Rows][Vectors] = {};
  RowPointers<E, Rows> rows(tile.left.data, tile.left.row);
  const i64 depth = tile.depth, left_step = tile.left.step * i64{sizeof(E)};
  const i64 right_stride = tile.right_stride;
  const E *right = tile.right, *next_right = tile.next_right;
  const char* const next_left = tile.next_left;
  const i64 next_left_stride = tile.next_left_stride, next_left_bytes = tile.next_left_bytes;
  for (i64 k = 0; k < depth; ++k) {
    Vec<S> x[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      x[j] = load_bits(right + j * W);
      __builtin_prefetch(next_right + j * W);
    }
    __builtin_prefetch(next_left + (k & 7) * next_left_stride + (k >> 3) * next_left_bytes, 0, 2);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      E factor;
      __builtin_memcpy(&factor, rows[r], sizeof factor);
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[r][j] = Op::step(sum[r][j], factor, x[j]);
    }
    rows.advance(left_step);
    right += right_stride;
    next_right += right_stride;
  }
  finish(tile, sum);
}

}  // namespace fbp::FBP_ISA

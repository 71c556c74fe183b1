// The inner loop of attention_pool.h: out[r][j] (+)= sum over k of left[k][r] * right[k][j].
//
// `left` holds up to kTileRows numbers per step, broadcast one by one; `right` holds kPanel
// numbers, read as two vectors.

#pragma once

#include "pack.h"

namespace fbp::FBP_ISA {

// As many accumulators as the registers hold beside two vectors of `right` and one broadcast.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif

// Lanes of a tile: two vectors.
template <class S>
constexpr int kPanel = 2 * kWidth<S>;

// Sums over k are pairwise: runs of up to a leaf's length are added in registers, runs are added in
// a balanced tree. The rounding error so grows with the leaf and hardly with the length. Leaves
// follow from the sizes of a problem, never from a cache or a number of threads, so results do not
// depend on how the work is divided.
constexpr i64 kLeaf = 128;

// For products with few rows or lanes. They come out of vendors' libraries as dot products, summed
// in many short runs, and must not be less exact here.
constexpr i64 kShortLeaf = 8;

constexpr i64 leaf_for(i64 rows, i64 lanes) {
  return smaller(rows, lanes) <= 2 * kShortLeaf ? kShortLeaf : kLeaf;
}

// Steps ahead of which `left` is fetched: read where it is, it jumps a row of weights at every
// step, which hardware does not foresee. Worth a factor of two where weights come from memory and
// the batch is one panel.
constexpr i64 kAhead = 32;

// One run: out = left^T right.
template <class S, int Rows>
inline void multiply_run(const S* left, i64 left_stride, const S* right, i64 depth, S* out) {
  constexpr int W = kWidth<S>;
  Vec<S> sum[Rows][2] = {};
  for (i64 k = 0; k < depth; ++k) {
    const Vec<S> right0 = load(right), right1 = load(right + W);
    __builtin_prefetch(left + kAhead * left_stride);
    __builtin_prefetch(left + kAhead * left_stride + Rows - 1);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec<S> factor = splat(left[r]);
      sum[r][0] += factor * right0;
      sum[r][1] += factor * right1;
    }
    left += left_stride;
    right += 2 * W;
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    store(out + r * 2 * W, sum[r][0]);
    store(out + r * 2 * W + W, sum[r][1]);
  }
}

template <class S, int Rows>
void multiply_rows(const S* left, i64 left_stride, const S* right, i64 depth, i64 leaf, S* out) {
  if (depth <= leaf) return multiply_run<S, Rows>(left, left_stride, right, depth, out);
  const i64 half = ceil_div(ceil_div(depth, leaf), 2) * leaf;
  S rest[Rows * kPanel<S>];
  multiply_rows<S, Rows>(left, left_stride, right, half, leaf, out);
  multiply_rows<S, Rows>(left + half * left_stride, left_stride, right + half * kPanel<S>,
                         depth - half, leaf, rest);
  for (int i = 0; i < Rows * kPanel<S>; ++i) out[i] += rest[i];
}

template <class S, int Rows>
inline void multiply_dispatch(int rows, const S* left, i64 left_stride, const S* right, i64 depth,
                              i64 leaf, S* out) {
  if (rows == Rows) {
    multiply_rows<S, Rows>(left, left_stride, right, depth, leaf, out);
  } else if constexpr (Rows > 1) {
    multiply_dispatch<S, Rows - 1>(rows, left, left_stride, right, depth, leaf, out);
  }
}

// out (rows, kPanel) = left^T right.
//   left:  (depth, rows) with a stride between steps, rows contiguous, 1 <= rows <= kTileRows
//   right: (depth, kPanel), contiguous
template <class S>
inline void multiply(int rows, const S* left, i64 left_stride, const S* right, i64 depth, i64 leaf,
                     S* out) {
  multiply_dispatch<S, kTileRows>(rows, left, left_stride, right, depth, leaf, out);
}

// Divides `length` rows into tiles of at most `most` that differ by at most one row, larger ones
// first.
struct Tiling {
  i64 length, count;

  explicit Tiling(i64 length_, i64 most = kTileRows)
      : length(length_), count(ceil_div(length_, most)) {}
  i64 start(i64 tile) const { return tile * (length / count) + smaller(tile, length % count); }
  int rows(i64 tile) const { return static_cast<int>(start(tile + 1) - start(tile)); }
};

// The left operand of a product, tile by tile: read where it is, or packed.
template <class S>
struct Left {
  const S* data;
  i64 stride;  // between steps, where read in place
  i64 depth;
  bool packed;

  const S* tile(const Tiling& tiling, i64 t) const {
    return data + tiling.start(t) * (packed ? depth : 1);
  }
  i64 tile_stride(const Tiling& tiling, i64 t) const { return packed ? tiling.rows(t) : stride; }
};

// from[r * row_stride + k * depth_stride], rows as in `tiling`, read in place where rows are
// contiguous and need no conversion: even where many panels use it, copying does not pay. `scratch`
// holds tiling.length * depth + kPackSlack.
template <class T, class S>
Left<S> prepare_left(const T* from, i64 row_stride, i64 depth_stride, const Tiling& tiling,
                     i64 depth, bool must_copy, S* scratch) {
  if constexpr (__is_same(T, S)) {
    if (row_stride == 1 && !must_copy) return {from, depth_stride, depth, false};
  }
  for (i64 t = 0; t < tiling.count; ++t) {
    const i64 start = tiling.start(t);
    const int rows = tiling.rows(t);
    pack(from + start * row_stride, row_stride, depth_stride, rows, depth, rows,
         scratch + start * depth);
  }
  return {scratch, 0, depth, true};
}

}  // namespace fbp::FBP_ISA

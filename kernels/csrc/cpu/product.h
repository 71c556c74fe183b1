// The inner loops of all bilinear products. Both read their operands where they stand:
//
//   outer: out[r][j] (+)= sum over k of left[r][k] * right[k][j]   columns are lanes
//   dot:   out[r][j] (+)= sum over k of left[r][k] * right[j][k]   steps are lanes
//
// `outer` broadcasts one number of `left`, at any strides, and reads contiguous vectors of `right`;
// `dot` reads vectors of both, and so transposes neither.

#pragma once

#include "tile.h"
#if defined(__AVX2__) && !defined(__AVX512F__)
#include "outer_avx2.h"
#else
#include "outer.h"
#endif

namespace fbp::FBP_ISA {

// Rows are at most kMaxRows and vectors at most max_vectors(rows).
template <class Op, int Rows = kMaxRows, int Vectors = max_vectors(Rows)>
inline void outer(int rows, int vectors, const OuterTile<Op>& tile) {
  if constexpr (Rows > 0 && Vectors > 0) {
    if (rows == Rows && vectors == Vectors) {
      outer_tile<Op, Rows, Vectors>(tile);
    } else if (rows == Rows) {
      outer<Op, Rows, Vectors - 1>(rows, vectors, tile);
    } else {
      outer<Op, Rows - 1>(rows, vectors, tile);
    }
  }
}

// Tile of `dot`: its sums, a vector of each row of one side and one of the other share the
// registers. Taken in runs of so many elements, that the tile's columns stay in L1.
constexpr int kDotRows = kRegisters == 32 ? 4 : 2;
constexpr int kDotColumns = 4;
constexpr i64 kDotRun = 1024;

// The sums of the lanes of W vectors, in their order.
template <class S>
inline Vec<S> sum_lanes(Vec<S>* x) {
  using I = typename FirstIndices<kWidth<S>>::type;
#pragma GCC unroll 4
  for (int half = kWidth<S> / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      x[i] = interleave<S, false>(x[i], x[i + half], I{}) +
             interleave<S, true>(x[i], x[i + half], I{});
  return x[0];
}

template <class E, int Rows>
void dot_tile(int columns, const Matrix<E>& left, const Matrix<E>& right, i64 depth,
              typename AccumulateIn<E>::type* out, i64 out_stride, bool first) {
  using S = typename AccumulateIn<E>::type;
  using Op = Arithmetic<E>;
  constexpr int W = kWidth<S>, kStep = W * Op::depth, kSums = Rows * kDotColumns;
  Vec<S> sum[round_up(kSums, W)] = {};
  const E *x[Rows], *y[kDotColumns];
  for (int r = 0; r < Rows; ++r) x[r] = left.at(r, 0);
  for (int c = 0; c < kDotColumns; ++c) y[c] = right.at(smaller(c, columns - 1), 0);
  const auto add = [&](const auto& read, i64 k) {
    Vec<S> factor[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) factor[r] = load_bits(x[r] + k);
#pragma GCC unroll 8
    for (int c = 0; c < kDotColumns; ++c) {
      const Vec<S> other = read(y[c] + k);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
        sum[r * kDotColumns + c] = Op::dot(sum[r * kDotColumns + c], factor[r], other);
    }
  };
  i64 k = 0;
  for (; k + kStep <= depth; k += kStep) add([](const E* from) { return load_bits(from); }, k);
  if (k < depth) add([&](const E* from) { return load_first_bits(from, depth - k); }, k);
  S total[round_up(kSums, W)];
#pragma GCC unroll 4
  for (int i = 0; i < kSums; i += W) store(total + i, sum_lanes<S>(sum + i));
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < columns; ++c) {
      S& to = out[r * out_stride + c];
      to = first ? total[r * kDotColumns + c] : to + total[r * kDotColumns + c];
    }
}

// out (rows, columns) (+)= left right^T; `left` (rows, depth) is padded with zeros to whole
// vectors, `right` is (columns, depth). Steps are 1.
template <class E, class S, int Rows = kDotRows>
inline void dot(int rows, int columns, const Matrix<E>& left, const Matrix<E>& right, i64 depth,
                S* out, i64 out_stride, bool first) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      dot_tile<E, Rows>(columns, left, right, depth, out, out_stride, first);
    } else {
      dot<E, S, Rows - 1>(rows, columns, left, right, depth, out, out_stride, first);
    }
  }
}

}  // namespace fbp::FBP_ISA

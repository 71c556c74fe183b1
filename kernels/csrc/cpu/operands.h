// What forward and backward share: how operands reach the products, the projections of a block,
// adaptive scales, dropout.
//
// Everything lies as tensors do, columns contiguous: a block of a projection is (rows of the batch,
// columns), of which `ld`, columns rounded up to whole vectors, lie in memory.

#pragma once

#include "memory.h"
#include "pack.h"
#include "philox.h"
#include "product.h"

namespace fbp::FBP_ISA {

// Rows of the batch that are worked on at a time; a multiple of 4, as dropout counts in fours.
constexpr i64 kBlockRows = 128;

// The most steps of a sum that are kept in registers. Runs follow from the sizes of a problem,
// never from a cache or a number of threads, so results do not depend on how the work is divided.
constexpr i64 kRun = 128;

// For products with few rows or columns. They come out of vendors' libraries as dot products,
// summed in many short runs, and must not be less exact here.
constexpr i64 kShortRun = 16;

template <class E>
constexpr i64 run_for(i64 rows, i64 columns) {
  return rows <= 4 || columns <= 8 ? kShortRun : kRun * Arithmetic<E>::depth;
}

// Gradients of weights, and projections that are kept, of so many bytes together are streamed past
// the caches if they are written once: about a core's L2. Other layers come before their readers.
constexpr i64 kStreamedBytes = 1 << 20;

// The parts' trunks, counted through.
struct Trunk {
  int part;
  i64 h;

  template <class Problem>
  Trunk(const Problem& problem, i64 index) : part(0), h(index) {
    while (h >= problem.part[part].H) h -= problem.part[part++].H;
  }
};

// Rows of the batch and columns of trunk h.
struct Block {
  i64 h, row, rows, n, columns;
};

// What is computed between products is rounded to this where it enters the next one.
#if defined(__AVX512BF16__)
template <class T>
struct BetweenOf {
  using type = typename AccumulateIn<T>::type;
};
template <>
struct BetweenOf<bfloat16> {
  using type = bfloat16;
};
#else
template <class T>
using BetweenOf = AccumulateIn<T>;
#endif
template <class T>
using Between = typename BetweenOf<T>::type;

// Rows r of `from` (r * row + k * step) widened to (rows, depth).
template <class T, class S>
void copy_rows(const Matrix<T>& from, i64 rows, i64 depth, S* to, i64 ld) {
  for (i64 r = 0; r < rows; ++r)
    for (i64 k = 0; k < depth; k += kWidth<S>)
      store(to + r * ld + k, load_strided(from.at(r, k), from.step, depth - k));
}

// Elements (k, j) of `from` (k * row + j * step) widened to (depth, lanes), zero from `columns` on.
// Where `spare` columns follow in memory and nothing need be converted, they stay where they are.
template <class T, class S>
const S* vectors_of(const Matrix<T>& from, i64 depth, i64 columns, i64 spare, i64 lanes, S* scratch,
                    i64& stride) {
  if constexpr (__is_same(T, S)) {
    if (from.step == 1 && columns + spare >= lanes) {
      stride = from.row;
      return from.data;
    }
  }
  stride = lanes;
  pack(from.data, from.step, from.row, columns, depth, lanes, scratch);
  return scratch;
}

// Brings runs of memory into L2. Inlined by force: a call that does nothing but fetch may be left
// out.
template <class T>
[[gnu::always_inline]] inline void fetch_runs(const T* from, i64 stride, i64 runs, i64 length) {
  for (i64 i = 0; i < runs; ++i, from += stride) {
    for (i64 j = 0; j < length; j += 64 / i64{sizeof(T)}) __builtin_prefetch(from + j, 0, 2);
    __builtin_prefetch(from + length - 1, 0, 2);
  }
}

// The same with a matrix, whichever way it is contiguous; nothing where it is not.
template <class T>
[[gnu::always_inline]] inline void fetch(const Matrix<T>& from, i64 depth, i64 columns) {
  if (from.step == 1) {
    fetch_runs(from.data, from.row, depth, columns);
  } else if (from.row == 1) {
    fetch_runs(from.data, from.step, columns, depth);
  }
}

#if defined(__AVX512BF16__)
inline u32 pair(bfloat16 even, bfloat16 odd) { return u32{even.bits} | u32{odd.bits} << 16; }

// The same in pairs along the depth, the last one filled up with zero.
inline void copy_rows(const Matrix<bfloat16>& from, i64 rows, i64 depth, u32* out, i64 ld) {
  const i64 pairs = depth / 2;
  for (i64 r = 0; r < rows; ++r) {
    u32* const to = out + r * ld;
    if (from.step == 1) {  // the pairs lie there; moved as floats, which keeps every bit
      const float* const row = reinterpret_cast<const float*>(from.at(r, 0));
      for (i64 k = 0; k < pairs; k += kWidth<float>)
        store(reinterpret_cast<float*>(to) + k, load_first(row + k, pairs - k));
    } else {
      for (i64 k = 0; k < pairs; ++k) to[k] = pair(*from.at(r, 2 * k), *from.at(r, 2 * k + 1));
    }
    if (depth % 2) to[pairs] = pair(*from.at(r, depth - 1), {0});
  }
}

// Two rows, one after the other in depth, as pairs: to[j] = (even[j], odd[j]) for j < columns, zero
// for columns <= j < lanes. Without `odd`, it is zero. Loads are of half a vector: whole ones would
// straddle lines that nobody has fetched.
inline void pair_rows(const bfloat16* even, const bfloat16* odd, i64 columns, i64 lanes, u32* to) {
  constexpr int W = kWidth<float>;
  constexpr VectorOf<u16, 2 * W>::type order = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  for (i64 j = 0; j < lanes; j += W) {
    const i64 count = columns - j;
    const auto get = [&](const bfloat16* row) {
      if (count >= W)
        return _mm512_zextsi256_si512(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + j)));
      const u32 wanted = (u32{1} << larger<i64>(count, 0)) - 1;
      return _mm512_zextsi256_si512(
          _mm256_maskz_loadu_epi16(static_cast<__mmask16>(wanted), row + j));
    };
    const __m512i x = get(even), y = odd ? get(odd) : __m512i{};
    const __m512i pairs = _mm512_permutex2var_epi16(x, reinterpret<__m512i>(order), y);
    __builtin_memcpy(to + j, &pairs, sizeof pairs);
  }
}

// Elements (k, j) of `from` (k * row + j * step) in pairs along the depth: (pairs, lanes), zero
// from `columns` on; `lanes` are whole vectors.
inline void pair_up(const Matrix<bfloat16>& from, i64 depth, i64 columns, i64 lanes, u32* to) {
  for (i64 k = 0; k < depth; k += 2, to += lanes) {
    const bool whole = k + 1 < depth;
    if (from.step == 1) {
      pair_rows(from.at(k, 0), whole ? from.at(k + 1, 0) : nullptr, columns, lanes, to);
    } else {
      for (i64 j = 0; j < lanes; ++j)
        to[j] = j < columns ? pair(*from.at(k, j), whole ? *from.at(k + 1, j) : bfloat16{0}) : 0;
    }
  }
}

inline const u32* vectors_of(const Matrix<bfloat16>& from, i64 depth, i64 columns, i64, i64 lanes,
                             u32* scratch, i64& stride) {
  stride = lanes;
  pair_up(from, depth, columns, lanes, scratch);
  return scratch;
}
#endif

// Elements of scratch that a product of up to kBlockRows rows may take.
template <class S>
constexpr i64 kProductScratch =
    kBlockRows * (kRun + kWidth<S>)+kRun * 8 * kWidth<S> + 2 * kPackSlack<S>;

// Where a product is streamed to, if anywhere: only its last run, as it is written then. `out`
// holds the sums of the runs before.
template <class S>
struct Streamed {
  S* data = nullptr;
  i64 ld = 0;
};

// out (rows, ld) (+)= left (rows, depth) right (depth, columns). `spare` columns of `right` follow
// in memory. Tiles are taken so that what is used next is near: a run of some columns stays in L1
// while all rows pass by. `after`, if any, is what will be read after `right`.
template <class L, class R, class S>
void multiply_block(const Matrix<L>& left, const Matrix<R>& right, i64 rows, i64 columns, i64 spare,
                    i64 depth, i64 run, S* out, i64 ld, bool first, S* scratch,
                    const R* after = nullptr, const Streamed<S>& streamed = {}) {
  using Op = Arithmetic<R>;
  using Element = typename Op::Element;
  constexpr int W = kWidth<S>;
  static_assert(sizeof(Element) == sizeof(S));
  const Tiling tiles(rows, kMaxRows), panels(ceil_div(columns, W), max_vectors(tiles.rows(0)));
  Element* const left_scratch = reinterpret_cast<Element*>(scratch);
  Element* const right_scratch = left_scratch + kBlockRows * (kRun + W) + kPackSlack<S>;
  OuterTile<Op> tile{};
  tile.turns = tiles.count;
  tile.sums_stride = ld;
  tile.streamed_stride = streamed.ld;
  if (left.step == 1) {
    tile.next_left_stride = left.row * i64{sizeof(L)};
    tile.next_left_bytes = 8 * Op::depth * i64{sizeof(L)};
  }
  const bool copied = !__is_same(L, Element) || !reads_in_place(left.row, left.step, panels.count);
  // Pairs of rows that lie together are made for all of them at once.
  const bool together = Op::depth == 2 && left.row == 1 && left.step != 1;
  for (i64 k = 0; k < depth; k += run) {
    const i64 steps = smaller(run, depth - k);
    const bool last = k + run >= depth;
    const i64 next_k = last ? k : k + run;
    tile.depth = ceil_div(steps, Op::depth);
    tile.first = first && k == 0;
    // A step more than there are, where the last of pairs is half of one.
    Matrix<Element> factors{left_scratch, round_up(tile.depth + Op::depth - 1, W), 1};
    if (!copied) factors = {reinterpret_cast<const Element*>(left.at(0, k)), left.row, left.step};
#if defined(__AVX512BF16__)
    if constexpr (Op::depth == 2)
      if (together) {
        factors = {left_scratch, 1, round_up(rows, W)};
        pair_up({left.at(0, k), left.step, 1}, steps, rows, factors.step, left_scratch);
      }
#endif
    for (i64 p = 0; p < panels.count; ++p) {
      const i64 j = panels.start(p) * W;
      const int vectors = panels.rows(p);
      const i64 used = smaller<i64>(columns - j, vectors * W);
      i64 stride = 0;
      const R* const here = right.at(k, j);
      // What is used next is fetched meanwhile: hardware does not foresee a jump at every step.
      const R* const next = p + 1 < panels.count ? right.at(k, j + vectors * W)
                            : !last              ? right.at(k + run, 0)
                            : after              ? after
                                                 : here;
      const Element* const x =
          vectors_of(Matrix<R>{here, right.row, right.step}, steps, used,
                     columns - j - used + spare, i64{vectors} * W, right_scratch, stride);
      tile.right = tile.next_right = x;
      tile.right_stride = tile.next_right_stride = stride;
      const bool in_place = static_cast<const void*>(x) == here;
      tile.copy = in_place && tiles.count >= kCopyingTurns ? right_scratch : nullptr;
      if (in_place) {
        tile.next_right = reinterpret_cast<const Element*>(next);
      } else {
        fetch(Matrix<R>{next, right.row, right.step}, steps, i64{vectors} * W);
      }
      for (i64 t = 0; t < tiles.count; ++t) {
        const i64 row = tiles.start(t);
        tile.turn = t;
        if (p == 0 && copied && !together)
          copy_rows(Matrix<L>{left.at(row, k), left.row, left.step}, tiles.rows(t), steps,
                    left_scratch + row * factors.row, factors.row);
        tile.left = {factors.at(row, 0), factors.row, factors.step};
        tile.sums = out + row * ld + j;
        if (last && streamed.data) tile.streamed = streamed.data + row * streamed.ld + j;
        // Of rows that are read where they stand, the next tile's; of those that were copied, the
        // next run.
        const L* const next_left = copied                ? left.at(row, next_k)
                                   : t + 1 < tiles.count ? left.at(tiles.start(t + 1), k)
                                                         : left.at(0, next_k);
        tile.next_left = reinterpret_cast<const char*>(next_left);
        if (!kFetchesRows && p == 0 && left.step == 1)
          fetch_runs(next_left, left.row, kMaxRows, steps);
        outer(tiles.rows(t), vectors, tile);
        if (t == 0 && tile.copy) {
          tile.right = tile.copy;
          tile.right_stride = i64{vectors} * W;
        }
      }
    }
  }
  if (depth == 0 && first)
    for (i64 i = 0; i < rows * ld; ++i) out[i] = S{0};
}

// out (rows, columns) (+)= left (rows, depth) right^T (columns, depth): both read along the depth.
// `left` is padded with zeros to whole vectors.
template <class E, class S>
void multiply_transposed(const Matrix<E>& left, const Matrix<E>& right, i64 rows, i64 columns,
                         i64 depth, S* out, i64 ld, bool first) {
  const Tiling tiles(rows, kDotRows);
  for (i64 k = 0; k < depth; k += kDotRun) {
    const i64 steps = smaller(kDotRun, depth - k);
    for (i64 c = 0; c < columns; c += kDotColumns)
      for (i64 t = 0; t < tiles.count; ++t)
        dot<E, S>(tiles.rows(t), static_cast<int>(smaller<i64>(kDotColumns, columns - c)),
                  {left.at(tiles.start(t), k), left.row, 1}, {right.at(c, k), right.row, 1}, steps,
                  out + tiles.start(t) * ld + c, ld, first && k == 0);
  }
}

// Factors of the rows of a block: mu and eta where pooling is adaptive.
template <class S>
struct Scales {
  i64 row = -1;  // of the block they belong to
  double norm[2][kBlockRows];
  S scale[2][kBlockRows];

  template <class T>
  void measure(const Part& part, i64 row_, i64 rows) {
    if (row == row_) return;
    row = row_;
    for (i64 r = 0; r < rows; ++r) {
      for (int side = 0; side < 2; ++side)
        norm[side][r] = length<T>(part.side[side].input, row + r, part.side[side].width);
      const double total = norm[0][r] + norm[1][r];
      for (int side = 0; side < 2; ++side)
        scale[side][r] = static_cast<S>(total == 0 ? 0.5 : norm[side][r] / total);
    }
  }

 private:
  template <class T>
  static double length(const View& input, i64 row, i64 width) {
    constexpr int W = kWidth<S>;
    using Wide = typename VectorOf<double, W>::type;
    Wide sum = {};
    for (i64 c = 0; c < width; c += W) {
      const Wide x = __builtin_convertvector(
          load_strided(at<T>(input, row, 0, c), input.stride[2], width - c), Wide);
      sum += x * x;
    }
    double total = 0;
    for (int lane = 0; lane < W; ++lane) total += sum[lane];
    return __builtin_sqrt(total);
  }
};

inline bool alive(const Part& part, i64 h, i64 row) {
  return !part.lengths || h < part.lengths[row];
}

// Where the weights of a block start that `project` will read after those of side `s`, or null.
template <class T>
const T* weights_after(const Part& part, int s, const Block& block) {
  const i64 h = block.h + s;
  return h < part.H ? at<T>(part.side[1 - s].weight, h, 0, block.n) : nullptr;
}

// One side's projections of a block, out (rows, ld): product, scale, bias, zero in dead rows.
template <class T, class S>
void project(const Part& part, int s, i64 B, const Block& block, const S* scale, S* out, i64 ld,
             S* scratch) {
  constexpr int W = kWidth<S>;
  const Side& side = part.side[s];
  const auto [h, row, rows, n, columns] = block;
  multiply_block(
      Matrix<T>{at<T>(side.input, row, h, 0), side.input.stride[0], side.input.stride[2]},
      Matrix<T>{at<T>(side.weight, h, 0, n), side.weight.stride[1], side.weight.stride[2]}, rows,
      columns, part.N - n - columns, side.width, run_for<T>(B, part.N), out, ld, true, scratch,
      weights_after<T>(part, s, block));
  if (scale)
    for (i64 r = 0; r < rows; ++r)
      for (i64 j = 0; j < ld; ++j) out[r * ld + j] *= scale[r];
  if (side.bias) {
    S* const bias = scratch;  // free by now, and too short for no block
    for (i64 start = 0; start < ld; start += kProductScratch<S> / 2) {
      const i64 end = smaller(ld, start + kProductScratch<S> / 2);
      for (i64 j = start; j < end; j += W)
        store(bias + j - start, load_strided(at<T>(side.bias, h, 0, n + j), side.bias.stride[2],
                                             larger<i64>(columns - j, 0)));
      for (i64 r = 0; r < rows; ++r)
        for (i64 j = start; j < end; ++j) out[r * ld + j] += bias[j - start];
    }
  }
  if (!part.lengths) return;
  for (i64 r = 0; r < rows; ++r)
    if (!alive(part, h, row + r))
      for (i64 j = 0; j < ld; ++j) out[r * ld + j] = S{0};
}

// Multiplies a block by its dropout mask.
template <class S>
void drop(const Part& part, const Block& block, S* x, i64 ld) {
  constexpr int kColumns = 64;
  S mask[4 * kColumns];
  for (i64 r = 0; r < block.rows; r += 4)
    for (i64 j = 0; j < block.columns; j += kColumns) {
      const int columns = static_cast<int>(smaller<i64>(kColumns, block.columns - j));
      dropout_mask<4 * kColumns>(part.dropout, part.stream, block.h, block.n + j, columns,
                                 block.row + r, 4, mask);
      for (i64 i = 0; i < smaller<i64>(4, block.rows - r); ++i)
        for (int c = 0; c < columns; ++c) x[(r + i) * ld + j + c] *= mask[4 * c + i];
    }
}

}  // namespace fbp::FBP_ISA

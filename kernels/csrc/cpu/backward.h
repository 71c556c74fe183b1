// Gradients of the bilinear pooling. With x and y the inputs of the two sides, W their weights, u
// their projections:
//
//   du[b, n] = dz[b, n / K] * mask * (the other side's u),  dx = du W^T,  dW = x^T du,  d_bias =
//   sum over b of du
//
// It goes over the batch in blocks of rows, and for each over the columns of all trunks in steps
// that fit the cache: first du of a step, from kept projections or projections computed again; then
// the products, which add to dx (all steps) and to dW (all blocks of rows). The order of every sum
// is fixed by sizes alone.

#pragma once

#include "operands.h"

namespace fbp::FBP_ISA {

template <class T>
class Backward {
 public:
  explicit Backward(const BackwardProblem& problem) : problem_(problem) {
    double flops = 0;
    i64 bytes_per_row = 0, d_weight_bytes = 0;
    for (int i = 0; i < problem.parts; ++i) {
      const BackwardPart& part = problem.part[i];
      trunks_ += part.H;
      for (int side = 0; side < 2; ++side) {
        const i64 width = part.side[side].width;
        flops += 4.0 * static_cast<double>(part.H * width) * static_cast<double>(part.N);
        bytes_per_row += part.H * width * i64{sizeof(S)};
        widest_ = larger(widest_, width);
        if (part.d_weight[side]) d_weight_bytes += part.H * width * part.N * i64{sizeof(T)};
        // An adaptive scale depends on both inputs, so each input's gradient needs that of the
        // other.
        need_input_[i][side] = part.d_input[side] || (part.adaptive && part.d_input[1 - side]);
        need_projection_[i][side] =
            need_input_[i][side] || part.d_weight[side] || part.d_bias[side];
      }
    }
    threads_ = threads_for(flops * larger(static_cast<double>(problem.B), kLeastRows));
    const i64 rows = kRowBytes / larger<i64>(bytes_per_row, 1) / kGrain * kGrain;
    rows_ = smaller(smaller(larger(rows, kGrain), kMaxBatch), problem.B);
    stream_weights_ = d_weight_bytes >= kStreamedBytes && rows_ == problem.B;
  }

  void run() {
    for (int i = 0; i < problem_.parts; ++i) {
      const BackwardPart& part = problem_.part[i];
      if (part.adaptive) scales_[i] = Buffer<Scales<S>>(ceil_div(rows_, kBlockRows));
      for (int side = 0; side < 2; ++side) {
        if (need_input_[i][side] && !written_directly(i, side))
          input_sum_[i][side] = Buffer<S>(part.H * rows_ * apart(part.side[side].width));
        if (part.d_bias[side]) bias_sum_[i][side] = Buffer<S>(part.H * part.N);
        // Half precision is rounded once, so several blocks of rows need a place to add up.
        if (part.d_weight[side] && sizeof(T) < sizeof(S) && rows_ < problem_.B)
          weight_sum_[i][side] = Buffer<S>(part.H * part.side[side].width * part.N);
      }
    }
    for (i64 start = 0; start < problem_.B; start += rows_)
      run_rows({start, smaller(rows_, problem_.B - start)});

    for (int i = 0; i < problem_.parts; ++i) {
      const BackwardPart& part = problem_.part[i];
      for (int side = 0; side < 2; ++side) {
        round_sums(bias_sum_[i][side], part.H * part.N, part.d_bias[side]);
        round_sums(weight_sum_[i][side], part.H * part.side[side].width * part.N,
                   part.d_weight[side]);
      }
    }
  }

 private:
  using S = typename AccumulateIn<T>::type;
  using E = Between<T>;

  // What a block of rows and a step may take: about what the last-level cache holds.
  static constexpr i64 kRowBytes = 16 << 20;
  static constexpr i64 kStepBytes = 16 << 20;
  static constexpr i64 kGrain = 256;  // rows of a block and columns of a slice come in multiples
  static constexpr i64 kMaxBatch = 1024;
  static constexpr i64 kMaxColumns = 4096;
  // What one job works on: columns of du, and channels of an input.
  static constexpr i64 kJobColumns = 256;
  // (Of pairs of half precision twice as many: each job interleaves its part of du anew.)
  static constexpr i64 kJobChannels = 64 * Arithmetic<E>::depth;
  // From so many rows on, du is stored transposed as well, for rows to be lanes in dx: they fill a
  // vector then.
  static constexpr i64 kRowsAsLanes = 16;
  // Below so many rows, weights take longer to fetch than to multiply.
  static constexpr double kLeastRows = 8;

  struct Rows {
    i64 start, count;

    i64 blocks() const { return ceil_div(count, kBlockRows); }
    i64 in_block(i64 index) const { return smaller(kBlockRows, count - index * kBlockRows); }
    // From row to row of what has a block's rows for columns.
    i64 lanes() const { return apart(smaller(kBlockRows, count)); }
  };

  // Columns n to n + columns of one trunk, and du of them: (rows, ld), zero past the last column,
  // and where rows are lanes (blocks of rows, columns, lanes) as well.
  struct Slice {
    Trunk trunk;
    i64 n, columns, ld;
    E *du[2], *transposed[2];
  };

  // Whole vectors, also of pairs of half precision.
  static i64 padded(i64 columns) { return round_up(columns, 2 * kWidth<S>); }

  // The same, an odd number of them, so that rows do not share sets of a cache.
  static i64 apart(i64 columns) {
    const i64 vectors = ceil_div(columns, 2 * kWidth<S>);
    return (vectors | 1) * 2 * kWidth<S>;
  }

  void run_rows(const Rows& rows) {
    for (int i = 0; i < problem_.parts; ++i) {
      const Part& part = problem_.part[i];
      if (!part.adaptive) continue;
      parallel(rows.blocks(), threads_, [&](int, i64 block) {
        scales_[i][block].row = -1;
        scales_[i][block].template measure<T>(part, rows.start + block * kBlockRows,
                                              rows.in_block(block));
      });
    }
    run_steps(rows);
    bool summed = false;
    for (int i = 0; i < problem_.parts; ++i)
      for (const Buffer<S>& sum : input_sum_[i]) summed |= sum.get() != nullptr;
    if (!summed) return;
    parallel(trunks_ * rows.blocks(), threads_, [&](int, i64 job) {
      finish_inputs(rows, Trunk(problem_, job / rows.blocks()), job % rows.blocks());
    });
  }

  // Whether products add up where dx is to be: whole vectors fit, and nothing more is done to them.
  bool written_directly(int i, int side) const {
    const BackwardPart& part = problem_.part[i];
    return __is_same(T, S) && !part.adaptive && part.side[side].width % kWidth<S> == 0;
  }

  // Where the sums of dx of trunk h start, from a row of these rows on; `ld` is from row to row.
  S* input_sums(const Rows& rows, const Trunk& trunk, int side, i64 row, i64& ld) const {
    const auto [i, h] = trunk;
    const BackwardPart& part = problem_.part[i];
    const i64 width = part.side[side].width;
    if (written_directly(i, side)) {
      ld = part.H * width;
      return static_cast<S*>(part.d_input[side]) + ((rows.start + row) * part.H + h) * width;
    }
    ld = apart(width);
    return input_sum_[i][side].get() + (h * rows_ + row) * ld;
  }

  // Walks through the columns of all trunks in steps of several slices, each trunk at most once per
  // step.
  void run_steps(const Rows& rows) {
    const i64 lanes = rows.count < kRowsAsLanes ? 0 : rows.blocks() * rows.lanes();
    const i64 per_column = 2 * (rows.count + lanes);  // two sides
    const i64 fitting = kStepBytes / (per_column * i64{sizeof(E)});
    const i64 most = smaller(larger(fitting / kGrain, i64{1}) * kGrain, kMaxColumns);
    i64 all = 0, longest = 0;
    for (int i = 0; i < problem_.parts; ++i) {
      const i64 N = problem_.part[i].N;
      all += problem_.part[i].H * apart(N);
      longest = larger(longest, apart(smaller(N, most)));
    }
    const Buffer<Slice> slices(trunks_);
    const Buffer<E> memory(per_column * larger(longest, smaller(fitting, all)));
    i64 count = 0, columns = 0;
    E* free = memory.get();
    const auto flush = [&] {
      if (count > 0) run_step(rows, slices.get(), count);
      count = columns = 0;
      free = memory.get();
    };
    for (i64 t = 0; t < trunks_; ++t) {
      const Trunk trunk(problem_, t);
      const i64 N = problem_.part[trunk.part].N;
      for (i64 n = 0; n < N; n += most) {
        Slice slice{trunk, n, smaller(most, N - n), 0, {}, {}};
        slice.ld = apart(slice.columns);
        if (count > 0 && (n > 0 || columns + slice.ld > fitting)) flush();
        columns += slice.ld;
        for (int side = 0; side < 2; ++side) {
          slice.du[side] = free;
          free += rows.count * slice.ld;
          slice.transposed[side] = lanes > 0 ? free : nullptr;
          free += lanes * slice.ld;
        }
        slices[count++] = slice;
      }
    }
    flush();
  }

  void run_step(const Rows& rows, const Slice* slices, i64 count) {
    i64 columns = 0;
    for (i64 s = 0; s < count; ++s) columns = larger(columns, slices[s].columns);
    const i64 strips = ceil_div(columns, kJobColumns);
    const i64 groups = ceil_div(widest_, kJobChannels);
    const i64 area = smaller(rows.count, kBlockRows) * kJobColumns;
    const i64 copied = rows.count * kJobChannels;  // see `weighted`
    const WorkerBuffers<S> memory(
        threads_, larger(4 * area, copied + kJobChannels * larger(kJobColumns, kBlockRows)) +
                      kProductScratch<S>);

    parallel(count * strips * rows.blocks(), threads_, [&](int worker, i64 job) {
      const Slice& slice = slices[job / rows.blocks() / strips];
      const i64 column = job / rows.blocks() % strips * kJobColumns;
      if (column < slice.columns)
        differentiate(rows, slice, job % rows.blocks(), column, memory.of(worker));
    });

    // For each side and group of channels, dx of each block of rows, then dW of each strip.
    const i64 products = rows.blocks() + strips;
    parallel(count * 2 * groups * products, threads_, [&](int worker, i64 job) {
      const Slice& slice = slices[job / (2 * groups * products)];
      const int side = static_cast<int>(job / (groups * products) % 2);
      const i64 c = job / products % groups * kJobChannels, index = job % products;
      const i64 width = problem_.part[slice.trunk.part].side[side].width;
      if (c < width) {
        const i64 channels = smaller(kJobChannels, width - c);
        if (index < rows.blocks()) {
          multiply_input(rows, slice, side, c, channels, index, memory.of(worker));
        } else if ((index - rows.blocks()) * kJobColumns < slice.columns) {
          multiply_weight(rows, slice, side, c, channels, (index - rows.blocks()) * kJobColumns,
                          memory.of(worker));
        }
      }
      if (c == 0 && index >= rows.blocks())
        sum_bias(rows, slice, side, (index - rows.blocks()) * kJobColumns);
    });
  }

  const S* scale(int i, int side, i64 block) const {
    return problem_.part[i].adaptive ? scales_[i][block].scale[side] : nullptr;
  }

  // du of one block of rows, from slice.n + column on.
  void differentiate(const Rows& rows, const Slice& slice, i64 index, i64 column,
                     S* scratch) const {
    const auto [i, h] = slice.trunk;
    const BackwardPart& part = problem_.part[i];
    const i64 first = index * kBlockRows;
    const Block block{h, rows.start + first, rows.in_block(index), slice.n + column,
                      smaller(kJobColumns, slice.columns - column)};
    const i64 ld = padded(block.columns), area = block.rows * ld;
    S *const projection[2] = {scratch, scratch + area}, *const d_product = scratch + 2 * area,
             *const du = scratch + 3 * area;
    for (int side = 0; side < 2; ++side)
      if (!part.kept[side])
        project<T>(part, side, problem_.B, block, scale(i, side, index), projection[side], ld, du);
    const auto kept_row = [&](int side, i64 r) {
      const T* const kept = static_cast<const T*>(part.kept[side]);
      return kept ? kept + (h * problem_.B + block.row + r) * part.N + block.n : nullptr;
    };
    for (i64 r = 0; r < block.rows; ++r) {
      // Projections come from memory, a short run of each row, which hardware does not foresee.
      for (int side = 0; side < 2; ++side)
        if (const T* const kept = kept_row(side, r)) fetch_runs(kept, 0, 1, block.columns);
      spread(part, block, r, d_product + r * ld);
    }
    if (part.dropout.active) drop(part, block, d_product, ld);
    for (int side = 0; side < 2; ++side) {
      if (!need_projection_[i][side]) continue;
      for (i64 r = 0; r < block.rows; ++r) {
        const i64 columns = alive(part, h, block.row + r) ? block.columns : 0;
        const auto multiply = [&](const auto* other) {
          for (i64 j = 0; j < ld; j += kWidth<S>) {
            const i64 count = larger<i64>(columns - j, 0);
            const Vec<S> product = load(d_product + r * ld + j) * load_first(other + j, count);
            store(du + r * ld + j, first_of<S>(product, count));
          }
        };
        if (const T* const kept = kept_row(1 - side, r)) {
          multiply(kept);
        } else {
          multiply(projection[1 - side] + r * ld);
        }
        E* const to = slice.du[side] + (first + r) * slice.ld + column;
        round_row(du + r * ld, smaller(ld, slice.ld - column), to);
      }
      if (slice.transposed[side])
        store_transposed(du, ld, block.rows, block.columns,
                         slice.transposed[side] + (index * slice.ld + column) * rows.lanes(),
                         rows.lanes());
    }
  }

  // The gradient of z of one row for each of the columns that were summed; may write a vector past
  // them.
  void spread(const Part& part, const Block& block, i64 r, S* to) const {
    i64 o = block.n / part.K, end = part.K - block.n % part.K;
    for (i64 j = 0; j < block.columns; ++o, end += part.K) {
      const Vec<S> dz = splat(widen(*at<T>(problem_.dz, block.row + r, part.o_offset + o, 0)));
      for (end = smaller(end, block.columns); j < end; j += kWidth<S>) store(to + j, dz);
      j = end;
    }
  }

  // Adds to d_bias of one strip. In double, so that many rows lose nothing.
  void sum_bias(const Rows& rows, const Slice& slice, int side, i64 column) const {
    const auto [i, h] = slice.trunk;
    const BackwardPart& part = problem_.part[i];
    if (!part.d_bias[side] || column >= slice.columns) return;
    double sum[kJobColumns] = {};
    const i64 columns = smaller(kJobColumns, slice.columns - column);
    for (i64 r = 0; r < rows.count; ++r) {
      const E* const du = slice.du[side] + r * slice.ld + column;
      for (i64 j = 0; j < columns; ++j) sum[j] += static_cast<double>(widen(du[j]));
    }
    S* const total = bias_sum_[i][side].get() + h * part.N + slice.n + column;
    for (i64 j = 0; j < columns; ++j)
      total[j] = static_cast<S>(rows.start == 0 ? sum[j] : static_cast<double>(total[j]) + sum[j]);
  }

  // Adds du W^T over the slice's columns to channels of dx of one block of rows.
  void multiply_input(const Rows& rows, const Slice& slice, int side, i64 c, i64 channels,
                      i64 index, S* scratch) const {
    const auto [i, h] = slice.trunk;
    if (!need_input_[i][side]) return;
    const Side& from = problem_.part[i].side[side];
    const i64 first = index * kBlockRows, count = rows.in_block(index);
    const Matrix<E> du{slice.du[side] + first * slice.ld, slice.ld, 1};
    const Matrix<T> weight{at<T>(from.weight, h, c, slice.n), from.weight.stride[1],
                           from.weight.stride[2]};
    const i64 run = run_for<E>(problem_.B, from.width);
    const bool anew = slice.n == 0;
    i64 ld = 0;
    S* const sum = input_sums(rows, slice.trunk, side, first, ld) + c;
    if (const E* const transposed = slice.transposed[side]) {
      const i64 lanes = rows.lanes(), product_ld = round_up(count, kWidth<S>);
      S* const product = scratch + kProductScratch<S>;
      multiply_block(weight, Matrix<E>{transposed + index * slice.ld * lanes, lanes, 1}, channels,
                     count, lanes - count, slice.columns, run, product, product_ld, true, scratch);
      return add_transposed(product, product_ld, channels, count, anew, sum, ld);
    }
    if constexpr (__is_same(T, E)) {
      if (weight.step == 1)
        return multiply_transposed(du, weight, count, channels, slice.columns, sum, ld, anew);
    }
    multiply_block(du, Matrix<T>{weight.data, weight.step, weight.row}, count, channels,
                   from.width - c - channels, slice.columns, run, sum, ld, anew, scratch);
  }

  // Adds x^T du over these rows to channels of dW, in one strip of columns.
  void multiply_weight(const Rows& rows, const Slice& slice, int side, i64 c, i64 channels,
                       i64 column, S* scratch) const {
    const auto [i, h] = slice.trunk;
    const BackwardPart& part = problem_.part[i];
    if (!part.d_weight[side]) return;
    const Side& from = part.side[side];
    const i64 columns = smaller(kJobColumns, slice.columns - column), n = slice.n + column;
    const Matrix<E> du{slice.du[side] + column, slice.ld, 1};
    const Matrix<T> x{at<T>(from.input, rows.start, h, c), from.input.stride[2],
                      from.input.stride[0]};
    const i64 run = run_for<E>(from.width, part.N), spare = slice.ld - column - columns;
    const bool first = rows.start == 0;
    S* const product = scratch + rows.count * kJobChannels;
    S* const free = product + kJobChannels * kJobColumns;
    const auto multiply = [&](S* out, i64 ld, bool anew, const Streamed<S>& streamed = {}) {
      if (kCopiesInputs || part.lengths || part.adaptive) {
        const Matrix<E> copy =
            weighted(rows, slice, side, x, channels, reinterpret_cast<E*>(scratch));
        multiply_block(copy, du, channels, columns, spare, rows.count, run, out, ld, anew, free,
                       /*after=*/{}, streamed);
      } else {
        multiply_block(x, du, channels, columns, spare, rows.count, run, out, ld, anew, free,
                       /*after=*/{}, streamed);
      }
    };
    const i64 place = (h * from.width + c) * part.N + n;
    if constexpr (__is_same(T, S)) {
      S* const to = static_cast<S*>(part.d_weight[side]) + place;
      if (stream_weights_ && streamable(to, part.N * i64{sizeof(S)})) {
        multiply(product, columns, true, {to, part.N});
        return finish_streams();
      }
      if (columns % kWidth<S> == 0) return multiply(to, part.N, first);
    }
    const i64 ld = round_up(columns, kWidth<S>);
    multiply(product, ld, true);
    S* const sums = weight_sum_[i][side].get();
    for (i64 r = 0; r < channels; ++r) {
      if (sums) {
        add_row(product + r * ld, columns, first, sums + place + r * part.N);
      } else {
        add_row(product + r * ld, columns, first,
                static_cast<T*>(part.d_weight[side]) + place + r * part.N);
      }
    }
  }

  // (channels, rows) of x times the adaptive scale, zero in dead rows: 0 times what stands there
  // may be NaN.
  Matrix<E> weighted(const Rows& rows, const Slice& slice, int side, const Matrix<T>& x,
                     i64 channels, E* to) const {
    const auto [i, h] = slice.trunk;
    const BackwardPart& part = problem_.part[i];
    for (i64 row = 0; row < rows.count; ++row) {
      const bool lives = alive(part, h, rows.start + row);
      const S* const scales = scale(i, side, row / kBlockRows);
      const S factor = scales ? scales[row % kBlockRows] : S{1};
      for (i64 c = 0; c < channels; c += kWidth<S>) {
        const Vec<S> values = load_strided(x.at(c, row), x.row, lives ? channels - c : 0);
        store_first<E>(to + row * kJobChannels + c, values * splat(factor), kJobChannels - c);
      }
    }
    return {to, 1, kJobChannels};
  }

  template <class To>
  static void add_row(const S* row, i64 count, bool first, To* to) {
    for (i64 start = 0; start < count; start += kWidth<S>) {
      Vec<S> x = load_first(row + start, count - start);
      if (!first) x += load_first(to + start, count - start);
      store_first<To>(to + start, x, count - start);
    }
  }

  // to[r * to_ld + c] (+)= from[c * ld + r].
  static void add_transposed(const S* from, i64 ld, i64 channels, i64 rows, bool first, S* to,
                             i64 to_ld) {
    constexpr int W = kWidth<S>;
    for (i64 r = 0; r < rows; r += W)
      for (i64 c = 0; c < channels; c += W) {
        Vec<S> block[W];
        for (i64 i = 0; i < W; ++i)
          block[i] = c + i < channels ? load(from + (c + i) * ld + r) : Vec<S>{};
        transpose<S>(block);
        for (i64 i = 0; i < smaller<i64>(W, rows - r); ++i) {
          S* const place = to + (r + i) * to_ld + c;
          if (!first) block[i] += load_first(place, channels - c);
          store_first<S>(place, block[i], channels - c);
        }
      }
  }

  // dx of one block of rows of one trunk from the sum over columns: through the adaptive scale, and
  // rounded.
  void finish_inputs(const Rows& rows, const Trunk& trunk, i64 index) const {
    const auto [i, h] = trunk;
    const BackwardPart& part = problem_.part[i];
    for (i64 r = 0; r < rows.in_block(index); ++r) {
      const i64 row = index * kBlockRows + r;
      S* sum[2] = {};
      for (int side = 0; side < 2; ++side)
        if (input_sum_[i][side].get()) {
          i64 ld = 0;
          sum[side] = input_sums(rows, trunk, side, row, ld);
        }
      if (part.adaptive && (sum[0] || sum[1])) adapt(i, scales_[i][index], r, sum);
      for (int side = 0; side < 2; ++side) {
        if (!part.d_input[side] || !sum[side]) continue;
        const i64 width = part.side[side].width;
        T* const to =
            static_cast<T*>(part.d_input[side]) + ((rows.start + row) * part.H + h) * width;
        round_row(sum[side], width, to);
      }
    }
  }

  // With g the gradient of the scaled input: dx = scale g + d_norm x / |x|, where d_norm is what
  // flows through mu = |a| / (|a| + |v|) and eta = |v| / (|a| + |v|).
  void adapt(int i, const Scales<S>& scales, i64 r, S* const* g) const {
    constexpr int W = kWidth<S>;
    using Wide = typename VectorOf<double, W>::type;
    const Part& part = problem_.part[i];
    const i64 row = scales.row + r;
    double d_scale[2] = {};
    for (int side = 0; side < 2; ++side) {
      const auto& [width, input, weight, bias] = part.side[side];
      Wide sum = {};
      for (i64 c = 0; c < width; c += W) {
        const Vec<S> x = load_strided(at<T>(input, row, 0, c), input.stride[2], width - c);
        sum += __builtin_convertvector(x, Wide) *
               __builtin_convertvector(load_first(g[side] + c, width - c), Wide);
      }
      for (int lane = 0; lane < W; ++lane) d_scale[side] += sum[lane];
    }
    for (int side = 0; side < 2; ++side) {
      const auto& [width, input, weight, bias] = part.side[side];
      const double norm = scales.norm[side][r], other = scales.norm[1 - side][r];
      const double total = norm + other;
      const double d_norm = (d_scale[side] - d_scale[1 - side]) * (other / total) / total;
      const S slope = norm == 0 ? S{0} : static_cast<S>(d_norm / norm);
      for (i64 c = 0; c < width; c += W) {
        const Vec<S> x = load_strided(at<T>(input, row, 0, c), input.stride[2], width - c);
        store(g[side] + c, splat(scales.scale[side][r]) * load(g[side] + c) + splat(slope) * x);
      }
    }
  }

  static void round_sums(const Buffer<S>& sums, i64 count, void* to) {
    if (sums.get()) round_row(sums.get(), count, static_cast<T*>(to));
  }

  const BackwardProblem& problem_;
  i64 trunks_ = 0, rows_ = 0, widest_ = 1;
  int threads_ = 1;
  bool stream_weights_ = false;
  bool need_input_[kMaxParts][2] = {}, need_projection_[kMaxParts][2] = {};
  Buffer<Scales<S>> scales_[kMaxParts];  // of each block of rows
  Buffer<S> input_sum_[kMaxParts][2];    // dx: (H, rows, width apart)
  Buffer<S> weight_sum_[kMaxParts][2];   // (H, width, N), only where T does not hold it
  Buffer<S> bias_sum_[kMaxParts][2];     // (H, N)
};

}  // namespace fbp::FBP_ISA

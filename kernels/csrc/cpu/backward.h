// Gradients of the bilinear pooling. With x and y the inputs of the two sides, W their weights, u
// their projections:
//
//   du[b, n] = dz[b, n / K] * mask * (the other side's u),  dx = du W^T,  dW = x^T du,  d_bias =
//   sum over b of du
//
// It goes over the batch in blocks of rows, and for each over the columns of all trunks in steps
// that fit the cache: first du of a step, from kept projections or projections computed again, in
// the two layouts that the products read; then the products, which add to dx (all steps) and to dW
// (all blocks of rows). The order of every sum is fixed by sizes alone.

#pragma once

#include "projection.h"

namespace fbp::FBP_ISA {

template <class T>
class Backward {
 public:
  explicit Backward(const BackwardProblem& problem) : problem_(problem) {
    double flops = 0;
    i64 bytes_per_row = 0;
    for (int i = 0; i < problem.parts; ++i) {
      const BackwardPart& part = problem.part[i];
      trunks_ += part.H;
      for (int side = 0; side < 2; ++side) {
        const i64 width = part.side[side].width;
        flops += 6.0 * static_cast<double>(part.H * width) * static_cast<double>(part.N);
        bytes_per_row += part.H * width * i64{sizeof(S)};
        // An adaptive scale depends on both inputs, so each input's gradient needs that of the
        // other.
        need_input_[i][side] = part.d_input[side] || (part.adaptive && part.d_input[1 - side]);
        need_projection_[i][side] =
            need_input_[i][side] || part.d_weight[side] || part.d_bias[side];
      }
    }
    threads_ = threads_for(flops * static_cast<double>(problem.B));
    const i64 rows = kRowBytes / larger<i64>(bytes_per_row, 1) / kGrain * kGrain;
    rows_per_block_ = smaller(smaller(larger(rows, kGrain), kMaxRows), problem.B);
  }

  void run() {
    for (int i = 0; i < problem_.parts; ++i) {
      const BackwardPart& part = problem_.part[i];
      for (int side = 0; side < 2; ++side) {
        if (part.d_bias[side]) bias_sum_[i][side] = Buffer<S>(part.H * part.N);
        // Half precision is rounded once, so several blocks of rows need a place to add up.
        if (part.d_weight[side] && sizeof(T) < sizeof(S) && rows_per_block_ < problem_.B)
          weight_sum_[i][side] = Buffer<S>(part.H * part.side[side].width * part.N);
      }
    }
    for (i64 start = 0; start < problem_.B; start += rows_per_block_)
      run_rows({start, smaller(rows_per_block_, problem_.B - start), kPanel<S>});

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

  // What a block of rows and a step may take: about what the last-level cache holds.
  static constexpr i64 kRowBytes = 16 << 20;
  static constexpr i64 kStepBytes = 8 << 20;
  static constexpr i64 kGrain = 256;  // rows of a block and columns of a slice come in multiples
  static constexpr i64 kMaxRows = 2048;
  static constexpr i64 kMaxColumns = 4096;

  // Columns n to n + columns of one trunk, and du of them in two layouts:
  //   by_row:    (panels, columns, kPanel rows of the batch)
  //   by_column: (ceil(columns / kPanel), rows of the batch, kPanel columns), times the adaptive
  //   scale
  struct Slice {
    Trunk trunk;
    i64 n, columns;
    S* by_row[2];
    S* by_column[2];
  };

  void run_rows(const Rows& rows) {
    const i64 panels = rows.panels();
    for (int i = 0; i < problem_.parts; ++i) {
      const BackwardPart& part = problem_.part[i];
      packed_[i] = PackedPart<T>(part, panels, recomputes(i) || part.adaptive);
      d_pooled_[i] = Buffer<S>(panels * part.outputs() * kPanel<S>);
      for (int side = 0; side < 2; ++side)
        if (need_input_[i][side])
          input_sum_[i][side] = Buffer<S>(part.H * panels * part.side[side].width * kPanel<S>);
    }
    parallel(trunks_ * panels, threads_,
             [&](int, i64 job) { pack_panel(rows, Trunk(problem_, job / panels), job % panels); });

    run_steps(rows);

    parallel(trunks_ * panels, threads_, [&](int, i64 job) {
      finish_inputs(rows, Trunk(problem_, job / panels), job % panels);
    });
  }

  bool recomputes(int i) const { return problem_.part[i].kept[0] == nullptr; }

  void pack_panel(const Rows& rows, const Trunk& trunk, i64 panel) {
    const BackwardPart& part = problem_.part[trunk.part];
    packed_[trunk.part].pack_panel(part, rows, trunk.h, panel);
    if (trunk.h > 0) return;
    const View& dz = problem_.dz;
    pack(at<T>(dz, rows.row(panel), part.o_offset, 0), dz.stride[0], dz.stride[1],
         rows.lanes(panel), part.outputs(), kPanel<S>,
         d_pooled_[trunk.part].get() + panel * part.outputs() * kPanel<S>);
  }

  // Walks through the columns of all trunks in steps of several slices, each trunk at most once per
  // step.
  void run_steps(const Rows& rows) {
    // A column takes two sides and two layouts.
    const i64 per_column = 4 * rows.panels() * kPanel<S>;
    const i64 fitting = kStepBytes / (per_column * i64{sizeof(S)});
    const i64 most = smaller(larger(fitting / kGrain, i64{1}) * kGrain, kMaxColumns);
    i64 all = 0, longest = 0;
    for (int i = 0; i < problem_.parts; ++i) {
      const i64 N = problem_.part[i].N;
      all += problem_.part[i].H * round_up(N, kPanel<S>);
      longest = larger(longest, round_up(smaller(N, most), kPanel<S>));
    }
    const Buffer<Slice> slices(trunks_);
    const Buffer<S> memory(per_column * larger(longest, smaller(fitting, all)));
    i64 count = 0, columns = 0;
    S* free = memory.get();
    const auto flush = [&] {
      if (count > 0) run_step(rows, slices.get(), count);
      count = columns = 0;
      free = memory.get();
    };
    for (i64 t = 0; t < trunks_; ++t) {
      const Trunk trunk(problem_, t);
      const i64 N = problem_.part[trunk.part].N;
      for (i64 n = 0; n < N; n += most) {
        Slice slice{trunk, n, smaller(most, N - n), {}, {}};
        const i64 padded_columns = round_up(slice.columns, kPanel<S>);
        if (count > 0 && (n > 0 || columns + padded_columns > fitting)) flush();
        columns += padded_columns;
        for (int side = 0; side < 2; ++side) {
          slice.by_row[side] = free;
          slice.by_column[side] = free + per_column / 4 * padded_columns;
          free += per_column / 2 * padded_columns;
        }
        slices[count++] = slice;
      }
    }
    flush();
  }

  void run_step(const Rows& rows, const Slice* slices, i64 count) {
    i64 blocks = 0, tiles = 0, widths = 0, columns = 0;
    for (i64 s = 0; s < count; ++s) {
      const BackwardPart& part = problem_.part[slices[s].trunk.part];
      blocks = larger(blocks, ceil_div(slices[s].columns, kPanel<S>));
      columns = larger(columns, slices[s].columns);
      for (int side = 0; side < 2; ++side)
        tiles = larger(tiles, Tiling(part.side[side].width).count);
      widths = larger(widths, part.side[0].width + part.side[1].width);
    }
    {
      const WorkerBuffers<S> scratch(threads_, widths * kPanel<S> + 2 * kPackSlack<S>);
      parallel(count * blocks, threads_, [&](int worker, i64 job) {
        const Slice& slice = slices[job / blocks];
        const i64 column = job % blocks * kPanel<S>;
        if (column < slice.columns) differentiate(rows, slice, column, scratch.of(worker));
      });
    }
    const i64 depth = larger(columns, rows.count);
    const WorkerBuffers<S> scratch(threads_, depth * kTileRows + kPackSlack<S>);
    parallel(count * 4 * tiles, threads_, [&](int worker, i64 job) {
      const Slice& slice = slices[job / (4 * tiles)];
      const int side = static_cast<int>(job / (2 * tiles) % 2);
      const i64 tile = job % tiles;
      if (tile >= Tiling(problem_.part[slice.trunk.part].side[side].width).count) return;
      if (job / tiles % 2 == 0) {
        multiply_input(rows, slice, side, tile, scratch.of(worker));
      } else {
        multiply_weight(rows, slice, side, tile, scratch.of(worker));
      }
    });
  }

  // du of up to kPanel columns from slice.n + column on, for all rows.
  void differentiate(const Rows& rows, const Slice& slice, i64 column, S* scratch) {
    const auto [i, h] = slice.trunk;
    const BackwardPart& part = problem_.part[i];
    const i64 n = slice.n + column;
    const int columns = static_cast<int>(smaller<i64>(kPanel<S>, slice.columns - column));
    const Tiling tiling(columns);
    Left<S> weights[2];
    S bias[2][kPanel<S> * kPanel<S>] = {};
    if (recomputes(i)) {
      for (int side = 0; side < 2; ++side) {
        const View& weight = part.side[side].weight;
        weights[side] = prepare_left(at<T>(weight, h, 0, n), weight.stride[2], weight.stride[1],
                                     tiling, part.side[side].width, false, scratch);
        scratch += columns * part.side[side].width + kPackSlack<S>;
      }
    }
    for (i64 panel = 0; panel < rows.panels(); ++panel) {
      const Live<S> live(part, h, rows.row(panel), rows.lanes(panel));
      const Adaptive<S>* const adaptive = packed_[i].adaptive(panel);
      S projection[2][kPanel<S> * kPanel<S>], d_product[kPanel<S> * kPanel<S>];
      for (int side = 0; side < 2; ++side) {
        if (!recomputes(i)) {
          pack(static_cast<const T*>(part.kept[side]) +
                   (h * problem_.B + rows.row(panel)) * part.N + n,
               part.N, 1, rows.lanes(panel), columns, kPanel<S>, projection[side]);
          continue;
        }
        for (i64 t = 0; t < tiling.count; ++t)
          project_tile<T>(
              part.side[side], leaf_for(part.N, problem_.B), h, n + tiling.start(t), tiling.rows(t),
              weights[side].tile(tiling, t), weights[side].tile_stride(tiling, t),
              packed_[i].input_panel(side, h, panel), adaptive ? adaptive->scale[side] : nullptr,
              live, projection[side] + tiling.start(t) * kPanel<S>);
      }
      const S* const dz = d_pooled_[i].get() + panel * part.outputs() * kPanel<S>;
      for (int r = 0; r < columns; ++r)
        for (int lane = 0; lane < kPanel<S>; ++lane)
          d_product[r * kPanel<S> + lane] = dz[(n + r) / part.K * kPanel<S> + lane];
      if (part.dropout.active) drop(part, h, n, columns, rows.row(panel), d_product);
      for (int side = 0; side < 2; ++side) {
        if (!need_projection_[i][side]) continue;
        S* const by_row = slice.by_row[side] + (panel * slice.columns + column) * kPanel<S>;
        for (int e = 0; e < columns * kPanel<S>; ++e)
          by_row[e] = d_product[e] * projection[1 - side][e];
        live.apply(columns, by_row);
        if (part.d_bias[side])
          for (int e = 0; e < columns * kPanel<S>; ++e) bias[side][e] += by_row[e];
        if (!part.d_weight[side]) continue;
        const S* scaled = by_row;
        if (adaptive) {
          for (int e = 0; e < columns * kPanel<S>; ++e)
            projection[1 - side][e] = by_row[e] * adaptive->scale[side][e % kPanel<S>];
          scaled = projection[1 - side];
        }
        S* const by_column =
            slice.by_column[side] + (column * rows.panels() + panel * kPanel<S>)*kPanel<S>;
        store_transposed(scaled, kPanel<S>, columns, kPanel<S>, by_column, kPanel<S>);
      }
    }
    for (int side = 0; side < 2; ++side) {
      if (!part.d_bias[side]) continue;
      for (int r = 0; r < columns; ++r) {
        S sum{0};
        for (int lane = 0; lane < kPanel<S>; ++lane) sum += bias[side][r * kPanel<S> + lane];
        S& total = bias_sum_[i][side][h * part.N + n + r];
        total = rows.start == 0 ? sum : total + sum;
      }
    }
  }

  // Adds du W^T over the slice's columns to rows c of one tile of dx^T.
  void multiply_input(const Rows& rows, const Slice& slice, int side, i64 t, S* scratch) {
    const auto [i, h] = slice.trunk;
    if (!need_input_[i][side]) return;
    const Side& from = problem_.part[i].side[side];
    const Tiling tiling(from.width);
    const i64 c = tiling.start(t);
    const int count = tiling.rows(t);
    const Tiling one(count);
    const View& weight = from.weight;
    const Left<S> left = prepare_left(at<T>(weight, h, c, slice.n), weight.stride[1],
                                      weight.stride[2], one, slice.columns, false, scratch);
    for (i64 panel = 0; panel < rows.panels(); ++panel) {
      S product[kTileRows * kPanel<S>];
      multiply(count, left.tile(one, 0), left.tile_stride(one, 0),
               slice.by_row[side] + panel * slice.columns * kPanel<S>, slice.columns,
               leaf_for(from.width, problem_.B), product);
      S* const sum =
          input_sum_[i][side].get() + ((h * rows.panels() + panel) * from.width + c) * kPanel<S>;
      for (int e = 0; e < count * kPanel<S>; ++e)
        sum[e] = slice.n == 0 ? product[e] : sum[e] + product[e];
    }
  }

  // Adds x^T du over these rows to rows c of one tile of dW, in the slice's columns.
  void multiply_weight(const Rows& rows, const Slice& slice, int side, i64 t, S* scratch) {
    const auto [i, h] = slice.trunk;
    const BackwardPart& part = problem_.part[i];
    if (!part.d_weight[side]) return;
    const Side& from = part.side[side];
    const Tiling tiling(from.width);
    const i64 c = tiling.start(t);
    const int count = tiling.rows(t);
    const Tiling one(count);
    const i64 panels = ceil_div(slice.columns, kPanel<S>);
    // Dead rows must be zeroed, which only a copy can be: 0 times what stands there may be NaN.
    const Left<S> left =
        prepare_left(at<T>(from.input, rows.start, h, c), from.input.stride[2],
                     from.input.stride[0], one, rows.count, part.lengths != nullptr, scratch);
    if (part.lengths)
      for (i64 row = 0; row < rows.count; ++row)
        if (h >= part.lengths[rows.start + row])
          for (int r = 0; r < count; ++r) scratch[row * count + r] = S{0};
    S* const sums = weight_sum_[i][side].get();
    const bool first = rows.start == 0;
    for (i64 panel = 0; panel < panels; ++panel) {
      S product[kTileRows * kPanel<S>];
      multiply(count, left.tile(one, 0), left.tile_stride(one, 0),
               slice.by_column[side] + panel * rows.panels() * kPanel<S> * kPanel<S>, rows.count,
               leaf_for(from.width, part.N), product);
      const i64 n = slice.n + panel * kPanel<S>;
      const i64 columns = smaller<i64>(kPanel<S>, slice.n + slice.columns - n);
      for (int r = 0; r < count; ++r) {
        const i64 place = (h * from.width + c + r) * part.N + n;
        if (sums) {
          add_row(product + r * kPanel<S>, columns, first, sums + place);
        } else {
          add_row(product + r * kPanel<S>, columns, first,
                  static_cast<T*>(part.d_weight[side]) + place);
        }
      }
    }
  }

  template <class To>
  static void add_row(const S* row, i64 count, bool first, To* to) {
    for (i64 start = 0; start < count; start += kWidth<S>) {
      Vec<S> x = load(row + start);
      if (!first) x += load_first(to + start, count - start);
      store_first<To>(to + start, x, count - start);
    }
  }

  // dx of one panel of one trunk from the sum over columns: through the adaptive scale, transposed
  // and rounded.
  void finish_inputs(const Rows& rows, const Trunk& trunk, i64 panel) {
    const auto [i, h] = trunk;
    const BackwardPart& part = problem_.part[i];
    const i64 offset = h * rows.panels() + panel;
    if (part.adaptive && (part.d_input[0] || part.d_input[1])) adapt(i, panel);
    for (int side = 0; side < 2; ++side) {
      if (!part.d_input[side]) continue;
      const i64 width = part.side[side].width;
      S* const sum = input_sum_[i][side].get() + offset * width * kPanel<S>;
      if (part.lengths) Live<S>(part, h, rows.row(panel), rows.lanes(panel)).apply(width, sum);
      store_transposed(sum, kPanel<S>, width, rows.lanes(panel),
                       static_cast<T*>(part.d_input[side]) + (rows.row(panel) * part.H + h) * width,
                       part.H * width);
    }
  }

  // With g the gradient of the scaled input: dx = scale g + d_norm x / |x|, where d_norm is what
  // flows through mu = |a| / (|a| + |v|) and eta = |v| / (|a| + |v|).
  void adapt(int i, i64 panel) {
    const Adaptive<S>& adaptive = *packed_[i].adaptive(panel);
    double d_scale[2][kPanel<S>] = {};
    for (int side = 0; side < 2; ++side) {
      const i64 width = problem_.part[i].side[side].width;
      const S* const x = packed_[i].input_panel(side, 0, panel);
      const S* const g = input_sum_[i][side].get() + panel * width * kPanel<S>;
      for (i64 c = 0; c < width; ++c)
        for (int lane = 0; lane < kPanel<S>; ++lane)
          d_scale[side][lane] += static_cast<double>(x[c * kPanel<S> + lane]) *
                                 static_cast<double>(g[c * kPanel<S> + lane]);
    }
    for (int side = 0; side < 2; ++side) {
      S slope[kPanel<S>];  // d_norm / |x|
      for (int lane = 0; lane < kPanel<S>; ++lane) {
        const double norm = adaptive.norm[side][lane], other = adaptive.norm[1 - side][lane];
        const double total = norm + other;
        const double d_norm =
            (d_scale[side][lane] - d_scale[1 - side][lane]) * (other / total) / total;
        slope[lane] = norm == 0 ? S{0} : static_cast<S>(d_norm / norm);
      }
      const i64 width = problem_.part[i].side[side].width;
      const S* const x = packed_[i].input_panel(side, 0, panel);
      S* const g = input_sum_[i][side].get() + panel * width * kPanel<S>;
      for (i64 c = 0; c < width; ++c)
        for (int lane = 0; lane < kPanel<S>; ++lane) {
          const i64 e = c * kPanel<S> + lane;
          g[e] = adaptive.scale[side][lane] * g[e] + slope[lane] * x[e];
        }
    }
  }

  static void round_sums(const Buffer<S>& sums, i64 count, void* to) {
    if (!sums.get()) return;
    for (i64 i = 0; i < count; i += kWidth<S>)
      store_first<T>(static_cast<T*>(to) + i, load_first(sums.get() + i, count - i), count - i);
  }

  const BackwardProblem& problem_;
  i64 trunks_ = 0, rows_per_block_ = 0;
  int threads_ = 1;
  bool need_input_[kMaxParts][2] = {}, need_projection_[kMaxParts][2] = {};
  PackedPart<T> packed_[kMaxParts];
  Buffer<S> d_pooled_[kMaxParts];
  Buffer<S> input_sum_[kMaxParts][2];   // dx^T: (H, panels, width, kPanel)
  Buffer<S> weight_sum_[kMaxParts][2];  // (H, width, N), only where T does not hold it
  Buffer<S> bias_sum_[kMaxParts][2];    // (H, N)
};

}  // namespace fbp::FBP_ISA

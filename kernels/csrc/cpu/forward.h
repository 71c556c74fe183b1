// z = sum over trunks and over K of (a p) * (v q), tile by tile: no projection is ever in memory as
// a whole.

#pragma once

#include "projection.h"

namespace fbp::FBP_ISA {

template <class T>
class Forward {
 public:
  explicit Forward(const ForwardProblem& problem) : problem_(problem) {
    double flops = 0;
    for (int i = 0; i < problem.parts; ++i) flops += flops_per_row(problem.part[i]);
    threads_ = threads_for(flops * static_cast<double>(problem.B));
    flops_per_job_ = flops / (threads_ * kJobsPerThread);
  }

  void run() {
    i64 bytes_per_row = 0;
    for (int i = 0; i < problem_.parts; ++i) {
      const Part& part = problem_.part[i];
      bytes_per_row += part.H * (part.side[0].width + part.side[1].width) * i64{sizeof(S)};
    }
    i64 rows = smaller(kPackedBytes / larger<i64>(bytes_per_row, 1), kMaxRows);
    rows = smaller(larger<i64>(rows / kPanel<S>, 1) * kPanel<S>, round_up(problem_.B, kPanel<S>));
    for (i64 start = 0; start < problem_.B; start += rows)
      run_rows({start, smaller(rows, problem_.B - start), kPanel<S>});
  }

 private:
  using S = typename AccumulateIn<T>::type;

  // The packed inputs of the rows that are worked on at a time; beyond the last-level cache there
  // is no gain.
  static constexpr i64 kPackedBytes = 8 << 20;
  static constexpr i64 kMaxRows = 1024;
  // Packed weights of one thread: half of a common L2 cache.
  static constexpr i64 kWeightBytes = 384 << 10;
  // Enough for an even division when threads do not run at the same speed.
  static constexpr int kJobsPerThread = 6;

  static double flops_per_row(const Part& part) {
    return 2.0 * static_cast<double>(part.H) * static_cast<double>(part.N) *
           static_cast<double>(part.side[0].width + part.side[1].width);
  }

  // How a part's outputs are divided: blocks of outputs, each worked on in chunks of columns.
  struct Blocks {
    i64 outputs, count, chunk;
  };

  Blocks blocks(const Part& part) const {
    const i64 widths = part.side[0].width + part.side[1].width;
    const double flops_per_column = flops_per_row(part) / static_cast<double>(part.N);
    const double columns =
        smaller(larger(flops_per_job_ / flops_per_column, 1.0), static_cast<double>(8 * kTileRows));
    const i64 outputs = ceil_div(static_cast<i64>(columns), part.K);
    const i64 fitting = kWeightBytes / (larger<i64>(widths, 1) * i64{sizeof(S)});
    const i64 most = larger<i64>(fitting / kTileRows, 1) * kTileRows;
    const i64 chunks = ceil_div(outputs * part.K, most);
    return {outputs, ceil_div(part.outputs(), outputs), ceil_div(outputs * part.K, chunks)};
  }

  void run_rows(const Rows& rows) {
    i64 trunks = 0, jobs = 0, weights = 0, pooled = 0;
    Blocks block[kMaxParts] = {};
    for (int i = 0; i < problem_.parts; ++i) {
      const Part& part = problem_.part[i];
      packed_[i] = PackedPart<T>(part, rows.panels(), true);
      block[i] = blocks(part);
      trunks += part.H;
      jobs += block[i].count;
      const i64 widths = part.side[0].width + part.side[1].width;
      weights = larger(weights, block[i].chunk * widths + 2 * kPackSlack<S>);
      pooled = larger(pooled, block[i].outputs * rows.panels() * kPanel<S>);
    }
    const WorkerBuffers<S> weight_scratch(threads_, weights), pooled_scratch(threads_, pooled);

    parallel(trunks * rows.panels(), threads_, [&](int, i64 job) {
      const Trunk trunk(problem_, job / rows.panels());
      packed_[trunk.part].pack_panel(problem_.part[trunk.part], rows, trunk.h, job % rows.panels());
    });
    // The last part first: its jobs are the longer ones.
    parallel(jobs, threads_, [&](int worker, i64 job) {
      int i = problem_.parts - 1;
      if (job >= block[i].count) job -= block[i--].count;
      pool_block(problem_.part[i], packed_[i], rows, block[i], job, weight_scratch.of(worker),
                 pooled_scratch.of(worker));
    });
  }

  // z of one block of outputs, for all of these rows of the batch.
  void pool_block(const ForwardPart& part, const PackedPart<T>& packed, const Rows& rows,
                  const Blocks& block, i64 index, S* weight_scratch, S* pooled) const {
    const i64 first = index * block.outputs;
    const i64 outputs = smaller(block.outputs, part.outputs() - first);
    const i64 end = (first + outputs) * part.K;
    for (i64 i = 0; i < rows.panels() * outputs * kPanel<S>; ++i) pooled[i] = S{0};

    for (i64 h = 0; h < part.H; ++h)
      for (i64 n = first * part.K; n < end; n += block.chunk)
        pool_chunk(part, packed, rows, h, n, smaller(block.chunk, end - n), first, outputs,
                   weight_scratch, pooled);

    for (i64 panel = 0; panel < rows.panels(); ++panel)
      store_transposed(
          pooled + panel * outputs * kPanel<S>, kPanel<S>, outputs, rows.lanes(panel),
          static_cast<T*>(problem_.z) + rows.row(panel) * problem_.z_stride + part.o_offset + first,
          problem_.z_stride);
  }

  // Adds what trunk h and columns n to n + columns contribute to `pooled` (panels, outputs,
  // kPanel).
  void pool_chunk(const ForwardPart& part, const PackedPart<T>& packed, const Rows& rows, i64 h,
                  i64 n, i64 columns, i64 first, i64 outputs, S* weight_scratch, S* pooled) const {
    const Tiling tiling(columns);
    Left<S> weights[2];
    for (int side = 0; side < 2; ++side) {
      const View& weight = part.side[side].weight;
      weights[side] = prepare_left(at<T>(weight, h, 0, n), weight.stride[2], weight.stride[1],
                                   tiling, part.side[side].width, false, weight_scratch);
      weight_scratch += columns * part.side[side].width + kPackSlack<S>;
    }
    for (i64 panel = 0; panel < rows.panels(); ++panel) {
      const Live<S> live(part, h, rows.row(panel), rows.lanes(panel));
      for (i64 t = 0; t < tiling.count; ++t) {
        S tiles[2][kTileRows * kPanel<S>];
        const i64 column = n + tiling.start(t);
        const int count = tiling.rows(t);
        for (int side = 0; side < 2; ++side) {
          const Adaptive<S>* const adaptive = packed.adaptive(panel);
          project_tile<T>(part.side[side], leaf_for(part.N, problem_.B), h, column, count,
                          weights[side].tile(tiling, t), weights[side].tile_stride(tiling, t),
                          packed.input_panel(side, h, panel),
                          adaptive ? adaptive->scale[side] : nullptr, live, tiles[side]);
          if (part.kept[side])
            store_transposed(tiles[side], kPanel<S>, count, rows.lanes(panel),
                             static_cast<T*>(part.kept[side]) +
                                 (h * problem_.B + rows.row(panel)) * part.N + column,
                             part.N);
        }
        for (int i = 0; i < count * kPanel<S>; ++i) tiles[0][i] *= tiles[1][i];
        if (part.dropout.active) drop(part, h, column, count, rows.row(panel), tiles[0]);
        S* const to = pooled + (panel * outputs - first) * kPanel<S>;
        for (int r = 0; r < count; ++r) {
          S* const output = to + (column + r) / part.K * kPanel<S>;
          for (int lane = 0; lane < kPanel<S>; ++lane)
            output[lane] += tiles[0][r * kPanel<S> + lane];
        }
      }
    }
  }

  const ForwardProblem& problem_;
  int threads_ = 1;
  double flops_per_job_ = 0;
  PackedPart<T> packed_[kMaxParts];
};

}  // namespace fbp::FBP_ISA

// z = sum over trunks and over K of (a p) * (v q), block by block: no projection is ever in memory
// as a whole.

#pragma once

#include "operands.h"

namespace fbp::FBP_ISA {

template <class T>
class Forward {
 public:
  explicit Forward(const ForwardProblem& problem) : problem_(problem) {
    double work = 0;
    i64 kept_bytes = 0;
    for (int i = 0; i < problem.parts; ++i) {
      const ForwardPart& part = problem.part[i];
      work += work_per_column(part, problem.B) * static_cast<double>(part.N);
      for (const void* kept : part.kept)
        if (kept) kept_bytes += part.H * problem.B * part.N * i64{sizeof(T)};
    }
    stream_kept_ = kept_bytes >= kStreamedBytes;
    threads_ = threads_for(work);
    work_per_job_ = work / (threads_ * kJobsPerThread);
    const i64 blocks = ceil_div(problem.B, kBlockRows);
    block_rows_ = round_up(ceil_div(problem.B, blocks), 4);
  }

  void run() {
    const i64 row_blocks = ceil_div(problem_.B, block_rows_);
    const i64 rows = smaller(block_rows_, problem_.B);
    i64 jobs = 0, area = 0, pooled = 0, outputs[kMaxParts] = {}, count[kMaxParts] = {};
    for (int i = 0; i < problem_.parts; ++i) {
      const Part& part = problem_.part[i];
      outputs[i] = outputs_per_job(part, rows);
      count[i] = ceil_div(part.outputs(), outputs[i]) * row_blocks;
      jobs += count[i];
      area = larger(area, rows * round_up(outputs[i] * part.K, kWidth<S>));
      pooled = larger(pooled, round_up(rows * outputs[i], kWidth<S>));
    }
    const WorkerBuffers<Scales<S>> scales(threads_, 1);
    for (int worker = 0; worker < threads_; ++worker) scales.of(worker)->row = -1;
    const WorkerBuffers<S> memory(threads_, 2 * area + pooled + kProductScratch<S>);
    // The last part first: its jobs are the longer ones.
    parallel(jobs, threads_, [&](int worker, i64 job) {
      int i = problem_.parts - 1;
      if (job >= count[i]) job -= count[i--];
      S* const from = memory.of(worker);
      const Scratch scratch{{from, from + area}, from + 2 * area, from + 2 * area + pooled};
      const i64 row = job % row_blocks * block_rows_, first = job / row_blocks * outputs[i];
      const ForwardPart& part = problem_.part[i];
      pool(part, row, smaller(rows, problem_.B - row), first,
           smaller(outputs[i], part.outputs() - first), *scales.of(worker), scratch);
    });
  }

 private:
  using S = typename AccumulateIn<T>::type;

  // Enough to help a thread that runs slowly; with more, small batches read shorter pieces of rows.
  static constexpr int kJobsPerThread = 2;
  // Projections of one job: with what the products take, half of a common L2 cache.
  static constexpr i64 kAreaBytes = 128 << 10;
  static constexpr i64 kMaxColumns = 4096;
  static constexpr int kKnownFactors = 8;
  // Fetching a weight takes as long as this many operations.
  static constexpr double kWorkPerWeight = 16;

  // What one worker has to itself.
  struct Scratch {
    S* projection[2];  // (rows, ld)
    S* pooled;         // (rows, outputs)
    S* product;
  };

  static double work_per_column(const Part& part, i64 rows) {
    return larger(2.0 * static_cast<double>(rows), kWorkPerWeight) *
           static_cast<double>(part.H * (part.side[0].width + part.side[1].width));
  }

  i64 outputs_per_job(const Part& part, i64 rows) const {
    const i64 fitting = smaller(kAreaBytes / (rows * i64{sizeof(S)}), kMaxColumns);
    const double wanted = work_per_job_ / larger(work_per_column(part, rows), 1.0);
    const i64 columns = wanted < static_cast<double>(fitting) ? static_cast<i64>(wanted) : fitting;
    // Whole vectors, so that no lanes idle.
    i64 grain = kWidth<S>;
    while (grain % 2 == 0 && grain * part.K % (2 * kWidth<S>) == 0) grain /= 2;
    const i64 outputs = larger(columns / part.K / grain * grain, grain);
    return smaller(outputs, part.outputs());
  }

  // z of one block of rows and outputs.
  void pool(const ForwardPart& part, i64 row, i64 rows, i64 first, i64 outputs, Scales<S>& scales,
            const Scratch& scratch) const {
    for (i64 i = 0; i < rows * outputs; ++i) scratch.pooled[i] = S{0};
    if (part.adaptive) scales.template measure<T>(part, row, rows);
    for (i64 h = 0; h < part.H; ++h) {
      const Block block{h, row, rows, first * part.K, outputs * part.K};
      const i64 ld = round_up(block.columns, kWidth<S>);
      for (int side = 0; side < 2; ++side) {
        project<T>(part, side, problem_.B, block, part.adaptive ? scales.scale[side] : nullptr,
                   scratch.projection[side], ld, scratch.product);
        if (part.kept[side]) keep(part, side, block, scratch.projection[side], ld);
      }
      S* const product = scratch.projection[0];
      for (i64 i = 0; i < rows * ld; ++i) product[i] *= scratch.projection[1][i];
      if (part.dropout.active) drop(part, block, product, ld);
      for (i64 r = 0; r < rows; ++r)
        add_sums(static_cast<int>(part.K), product + r * ld, outputs, scratch.pooled + r * outputs);
    }
    for (i64 r = 0; r < rows; ++r)
      round_row(
          scratch.pooled + r * outputs, outputs,
          static_cast<T*>(problem_.z) + (row + r) * problem_.z_stride + part.o_offset + first);
  }

  // to[o] += the sum over K of from[o K + k]. With K known, the loop is a few instructions.
  template <int K = kKnownFactors>
  static void add_sums(int factors, const S* from, i64 outputs, S* to) {
    if constexpr (K > 1) {
      if (factors != K) return add_sums<K - 1>(factors, from, outputs, to);
    }
    const int count = K > 1 ? K : factors;
    for (i64 o = 0; o < outputs; ++o, from += count) {
      S sum = from[0];
      for (int k = 1; k < count; ++k) sum += from[k];
      to[o] += sum;
    }
  }

  void keep(const ForwardPart& part, int side, const Block& block, const S* projection,
            i64 ld) const {
    T* const to =
        static_cast<T*>(part.kept[side]) + (block.h * problem_.B + block.row) * part.N + block.n;
    if constexpr (__is_same(T, S)) {
      const bool whole_lines = streamable(to, part.N * i64{sizeof(T)}) && block.columns % 16 == 0;
      if (stream_kept_ && whole_lines) {
        for (i64 r = 0; r < block.rows; ++r)
          for (i64 j = 0; j < block.columns; j += kWidth<S>)
            stream(to + r * part.N + j, load(projection + r * ld + j));
        return finish_streams();
      }
    }
    for (i64 r = 0; r < block.rows; ++r)
      round_row(projection + r * ld, block.columns, to + r * part.N);
  }

  const ForwardProblem& problem_;
  int threads_ = 1;
  bool stream_kept_ = false;
  double work_per_job_ = 0;
  i64 block_rows_ = 0;
};

}  // namespace fbp::FBP_ISA

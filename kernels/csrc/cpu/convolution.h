// The gradient of a convolution's weights: dW = dy^T times the patches of x that the outputs saw.
//
// A patch is a row of kernel height x kernel width x channels numbers, the columns of dW, as a
// weight has them channels last. The loop is the one of the bilinear products: columns are lanes,
// dy is broadcast. No patch is ever in memory as a whole: of a run of positions, one panel of
// columns is gathered at a time, and read from L1 by all rows of a block.

#pragma once

#include "operands.h"

namespace fbp::FBP_ISA {

template <class T>
class ConvolutionWeights {
 public:
  explicit ConvolutionWeights(const ConvolutionProblem& problem)
      : problem_(problem),
        taps_(problem.kernel[0] * problem.kernel[1]),
        patch_(taps_ * problem.channels),
        positions_(problem.images * problem.output[0] * problem.output[1]),
        rows_(even_part(problem.outputs, kMostRows)),
        panels_(even_part(ceil_div(patch_, kPanel), kMostPanels)),
        row_blocks_(ceil_div(problem.outputs, rows_)),
        column_blocks_(ceil_div(ceil_div(patch_, kPanel), panels_)) {
    const i64 wanted =
        larger(ceil_div(kJobs, row_blocks_ * column_blocks_), ceil_div(bytes(), kShareBytes));
    const i64 fitting = kSumBytes / (problem.outputs * patch_ * i64{sizeof(S)});
    const i64 shares = smaller(wanted, larger(fitting, i64{1}));
    share_ = round_up(ceil_div(positions_, shares), kRun);
    threads_ = threads_for(2.0 * static_cast<double>(positions_) * static_cast<double>(patch_) *
                           static_cast<double>(problem.outputs));
  }

  void run() {
    const i64 shares = ceil_div(positions_, share_), blocks = row_blocks_ * column_blocks_;
    if (shares > 1) sums_ = Buffer<S>(shares * problem_.outputs * patch_);
    const i64 left = ceil_div(rows_, kMaxRows) * kTile, out = rows_ * ld();
    const WorkerBuffers<S> memory(threads_, left + out + kRun * kPanel + kWidth<S>);
    const WorkerBuffers<Seen> seen(threads_, kRun);
    // Those of one share follow each other: what all of them read is then near.
    parallel(shares * blocks, threads_, [&](int worker, i64 job) {
      S* const from = memory.of(worker);
      const Scratch scratch{from, from + left, from + left + out, seen.of(worker)};
      const i64 block = job % blocks;
      multiply(job / blocks, block % row_blocks_ * rows_, block / row_blocks_ * panels_, scratch);
    });
    if (shares > 1)
      parallel(problem_.outputs, threads_, [&](int, i64 row) { add_shares(row, shares); });
  }

 private:
  using S = typename AccumulateIn<T>::type;
  using Op = MultiplyAdd<S>;

  // Where a position's patch is in x: its first element, the row that is in, and which elements of
  // each of its rows are not over the border. Before x where the patch begins there.
  struct Seen {
    i64 origin, top, first, last;

    bool has(i64 row, i64 rows) const { return top + row >= 0 && top + row < rows; }
  };

  // What one worker has to itself.
  struct Scratch {
    S* left;   // see gather_gradients
    S* out;    // (rows, ld)
    S* panel;  // (run, vectors)
    Seen* seen;
  };

  static constexpr int kVectors = max_vectors(kMaxRows);
  static constexpr i64 kPanel = kVectors * kWidth<S>;
  static constexpr i64 kTile = kRun * kMaxRows + kWidth<S>;
  static constexpr i64 kFetches = 4;
  // Of a block of dW, which stays in L2 with what it is made of.
  static constexpr i64 kMostRows = 256, kMostPanels = 288 / kPanel;
  // Enough for many threads; sums do not depend on how many there are.
  static constexpr i64 kJobs = 32;
  // What all blocks read of one share of the positions stays in a last-level cache.
  static constexpr i64 kShareBytes = 8 << 20;
  static constexpr i64 kSumBytes = 16 << 20;

  static i64 even_part(i64 length, i64 most) { return ceil_div(length, ceil_div(length, most)); }

  i64 bytes() const {
    return (problem_.images * problem_.input[0] * problem_.input[1] * problem_.channels +
            positions_ * problem_.outputs) *
           i64{sizeof(T)};
  }

  // Rows of dW lie no power of two apart.
  i64 ld() const { return panels_ * kPanel + 2 * kWidth<S>; }

  // Where a panel's columns begin. All taps of some channels follow each other, where these fill a
  // panel: they read the same numbers of x.
  i64 column_of(i64 panel) const {
    if (problem_.channels % kPanel != 0) return panel * kPanel;
    return panel % taps_ * problem_.channels + panel / taps_ * kPanel;
  }

  // dW of one block, over one share of the positions.
  void multiply(i64 share, i64 row, i64 panel, const Scratch& scratch) const {
    const i64 rows = smaller(rows_, problem_.outputs - row);
    const i64 panels = smaller(panels_, ceil_div(patch_, kPanel) - panel);
    const Tiling tiles(rows, kMaxRows);
    OuterTile<Op> tile{};
    tile.right = tile.next_right = scratch.panel;
    tile.right_stride = tile.next_right_stride = kPanel;
    tile.next_left = reinterpret_cast<const char*>(scratch.left);
    tile.sums_stride = ld();
    tile.turns = tiles.count;
    const i64 begin = share * share_, end = smaller(positions_, begin + share_);
    for (i64 start = begin; start < end; start += kRun) {
      tile.depth = smaller(kRun, end - start);
      tile.first = start == begin;
      place(start, tile.depth, scratch.seen);
      gather_gradients(start, tile.depth, row, tiles, scratch.left);
      for (i64 p = 0; p < panels; ++p) {
        const i64 next = smaller(p + 1, panels - 1);
        gather_panel(scratch.seen, tile.depth, column_of(panel + p), column_of(panel + next),
                     scratch.panel);
        if (const i64 turn = p + kFetches - panels; turn >= 0)
          fetch_gradients(start + tile.depth, smaller(kRun, end - start - tile.depth), turn, row,
                          rows);
        for (i64 t = 0; t < tiles.count; ++t) {
          tile.turn = t;
          tile.left = {scratch.left + t * kTile, 1, kMaxRows};
          tile.sums = scratch.out + tiles.start(t) * ld() + p * kPanel;
          outer(tiles.rows(t), kVectors, tile);
        }
      }
    }
    for (i64 r = 0; r < rows; ++r)
      for (i64 p = 0; p < panels; ++p) {
        const i64 column = column_of(panel + p), count = smaller(kPanel, patch_ - column);
        const i64 at = (row + r) * patch_ + column;
        const S* const from = scratch.out + r * ld() + p * kPanel;
        if (S* const sums = sums_.get()) {
          round_row(from, count, sums + share * problem_.outputs * patch_ + at);
        } else {
          round_row(from, count, static_cast<T*>(problem_.d_weight) + at);
        }
      }
  }

  // Rows of a tile lie together: tiles x (run, kMaxRows). Strides of whole rows would share few
  // sets of L1.
  void gather_gradients(i64 start, i64 steps, i64 row, const Tiling& tiles, S* to) const {
    const T* from = static_cast<const T*>(problem_.dy) + start * problem_.outputs + row;
    for (i64 i = 0; i < steps; ++i, from += problem_.outputs, to += kMaxRows)
      for (i64 t = 0; t < tiles.count; ++t) {
        const i64 first = tiles.start(t);
        // What is written past the tile's rows, the next step overwrites.
        for (i64 r = 0; r < kMaxRows; r += kWidth<S>)
          store(to + t * kTile + r, load_first(from + first + r, tiles.length - first - r));
      }
  }

  // One of kFetches parts of what the next run gathers of dy. In a run's last panels: L2 holds a
  // block of dW, and would not keep it for longer.
  void fetch_gradients(i64 start, i64 steps, i64 turn, i64 row, i64 rows) const {
    const i64 first = steps * turn / kFetches, end = steps * (turn + 1) / kFetches;
    fetch_runs(static_cast<const T*>(problem_.dy) + (start + first) * problem_.outputs + row,
               problem_.outputs, end - first, rows);
  }

  // Where the patches of so many positions begin.
  void place(i64 start, i64 steps, Seen* to) const {
    const auto& [dtype, images, channels, outputs, input, output, kernel, stride, padding, x, dy,
                 d_weight] = problem_;
    i64 image = start / (output[0] * output[1]), y = start / output[1] % output[0],
        at = start % output[1];
    for (i64 i = 0; i < steps; ++i) {
      const i64 top = y * stride[0] - padding[0], left = at * stride[1] - padding[1];
      to[i] = {((image * input[0] + top) * input[1] + left) * channels, top, -left * channels,
               (input[1] - left) * channels};
      if (++at == output[1]) {
        at = 0;
        if (++y == output[0]) y = 0, ++image;
      }
    }
  }

  // A panel of patches from a column on, 0 where they reach over the border or end. The panel that
  // is next is fetched meanwhile.
  void gather_panel(const Seen* seen, i64 steps, i64 column, i64 next, S* to) const {
    const i64 line = problem_.kernel[1] * problem_.channels;  // of a patch, contiguous in x
    const i64 row = column / line, first = column % line;
    const bool whole = first + kPanel <= line;
    const i64 next_row = next / line, next_first = next % line;
    for (i64 i = 0; i < steps; ++i, to += kPanel) {
      const Seen& at = seen[i];
      __builtin_prefetch(line_of(at, next_row) + next_first, 0, 2);
      if (whole && at.has(row, problem_.input[0]) && first >= at.first &&
          first + kPanel <= at.last) {
        const T* const from = line_of(at, row) + first;
#pragma GCC unroll 8
        for (i64 j = 0; j < kPanel; j += kWidth<S>) store(to + j, load(from + j));
      } else {
        gather_piece(at, row, first, smaller(kPanel, patch_ - column), to);
      }
    }
  }

  // The same of one position, on the border or over several rows of its patch.
  void gather_piece(const Seen& at, i64 row, i64 first, i64 columns, S* to) const {
    const i64 line = problem_.kernel[1] * problem_.channels;
    for (i64 j = 0; j < kPanel; j += kWidth<S>) store(to + j, Vec<S>{});
    for (i64 base = -first; base < columns; base += line, ++row) {
      if (!at.has(row, problem_.input[0])) continue;
      const i64 begin = larger(larger(base, i64{0}), base + at.first);
      const i64 end = smaller(smaller(base + line, columns), base + at.last);
      // What is written past the end is 0, or belongs to what comes next.
      for (i64 j = begin; j < end; j += kWidth<S>)
        store(to + j, load_first(line_of(at, row) + (j - base), end - j));
    }
  }

  const T* line_of(const Seen& at, i64 row) const {
    return static_cast<const T*>(problem_.x) + at.origin +
           row * problem_.input[1] * problem_.channels;
  }

  // One row of dW, of all shares in their order.
  void add_shares(i64 row, i64 shares) const {
    constexpr i64 W = kWidth<S>;
    const S* const sums = sums_.get() + row * patch_;
    for (i64 j = 0; j < patch_; j += W) {
      const i64 count = patch_ - j;
      Vec<S> sum = load_first(sums + j, count);
      for (i64 share = 1; share < shares; ++share)
        sum += load_first(sums + share * problem_.outputs * patch_ + j, count);
      store_first<T>(static_cast<T*>(problem_.d_weight) + row * patch_ + j, sum, count);
    }
  }

  const ConvolutionProblem& problem_;
  const i64 taps_, patch_, positions_;
  const i64 rows_, panels_;  // of a block of dW
  const i64 row_blocks_, column_blocks_;
  i64 share_ = 0;  // of the positions, of which each share has sums of its own
  int threads_ = 1;
  Buffer<S> sums_;  // (shares, outputs, patch), where there is more than one
};

}  // namespace fbp::FBP_ISA

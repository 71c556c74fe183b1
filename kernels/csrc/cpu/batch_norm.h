// Batch normalisation with the statistics of the batch, and an optional ReLU after it:
//
//   y = relu((x - mean) scale + bias)   with scale = weight r and r = (variance + eps)^-1/2
//
// and, with g the gradient of what goes into the ReLU and n the values of a channel:
//
//   d_bias = sum of g,  d_weight = r * sum of g (x - mean),
//   dx = scale (g - d_bias / n - (x - mean) r d_weight / n)
//
// All are sums over blocks of values, each taken from its own mean, which double precision merges
// in the order of the blocks: no offset cancels, and no result depends on who did which block. The
// backward computes what went into the ReLU again, by the same operations, so that its mask is
// exactly where y is not 0.

#pragma once

#include "elementary.h"
#include "layout.h"
#include "memory.h"
#include "tile.h"

namespace fbp::FBP_ISA {

template <class T, bool Relu>
class BatchNorm {
 public:
  explicit BatchNorm(const BatchNormProblem& problem)
      : problem_(problem),
        gathers_(problem.channels_last && !problem.dy_channels_last),
        dy_(static_cast<const T*>(gathers_ ? problem.out : problem.dy)),
        channels_(problem.channels),
        stride_(round_up(channels_, W)),
        positions_(problem.rows * problem.row_length),
        all_(problem.images * positions_),
        length_(problem.channels_last ? smaller(round_up(ceil_div(kBlock, channels_), 4), kPixels)
                                      : kPlane),
        pieces_(ceil_div(problem.channels_last ? all_ : positions_, length_)),
        blocks_(problem.channels_last ? pieces_ : problem.images * pieces_),
        group_(problem.channels_last ? channels_ : kBlock / smaller(positions_, kPlane)),
        groups_(ceil_div(channels_, group_)),
        threads_(threads_for(8.0 * static_cast<double>(all_) * static_cast<double>(channels_))),
        counts_(blocks_) {
    for (i64 block = 0; block < blocks_; ++block) {
      i64 count = 0;
      over_runs(block, [&](i64 from, i64 to, bool inside) { count += inside ? to - from : 0; });
      counts_[block] = static_cast<double>(count);
      count_ += counts_[block];
    }
  }

  void forward() const {
    const Buffer<double> means(blocks_ * channels_), squares(blocks_ * channels_);
    const Buffer<double> origin = origins();
    over_blocks(kForwards, [&](i64 block, i64 first, i64 end, S* scratch) {
      statistics(block, first, end, scratch, origin, means.get() + block * channels_,
                 squares.get() + block * channels_);
    });
    merge(origin, means, squares);
    const Buffer<S> rows = parameters();
    over_blocks(kBackwards, [&](i64 block, i64 first, i64 end, S*) {
      write(block, first, end, rows.get(), Normalise{}, streams(kStreamedForward));
    });
  }

  void backward() const {
    const Buffer<S> rows = parameters();
    const Buffer<double> sums(blocks_ * channels_), products(blocks_ * channels_);
    over_blocks(kForwards, [&](i64 block, i64 first, i64 end, S* scratch) {
      if (gathers_) gather_dy(block);
      add_up(block, first, end, rows.get(), scratch, Gradients{});
      for (i64 c = first; c < end; ++c) {
        sums[block * channels_ + c] = static_cast<double>(scratch[c]);
        products[block * channels_ + c] = static_cast<double>(scratch[stride_ + c]);
      }
    });
    finish(sums, products, rows.get());
    if (problem_.out == nullptr) return;
    over_blocks(kBackwards, [&](i64 block, i64 first, i64 end, S*) {
      // Where dy was gathered, the lines of dx are in the cache.
      write(block, first, end, rows.get(), Differentiate{},
            !gathers_ && streams(kStreamedBackward));
    });
  }

 private:
  using S = typename AccumulateIn<T>::type;
  using V = Vec<S>;
  static constexpr i64 W = kWidth<S>;
  static constexpr i64 kBlock = 16384;  // values of a job: what both sweeps over it read fits L2
  static constexpr i64 kPixels = 256;   // of a job, at most
  static constexpr i64 kPlane = 4096;   // of a channel in a job, at most, with the channels apart
  static constexpr i64 kChain = 16;     // sums over pixels in a row
  static constexpr int kParameters = 7;
  // Results of so many bytes are streamed past the cache, that of the forward where whoever reads
  // it next would not find it there either.
  static constexpr i64 kStreamedForward = 64 << 20, kStreamedBackward = 32 << 20;

  // ---- what is done to a value: x, its dy, and the parameters p of its channel ----

  struct Two {
    V a, b;
  };

  static V normalised(V x, const V* p) { return (x - p[0]) * p[1] + p[2]; }

  static V gradient(V x, V dy, const V* p) {
    if constexpr (Relu) return normalised(x, p) <= 0 ? V{} : dy;
    return dy;
  }

  struct Plain {
    static constexpr int parameters = 0;
    static constexpr bool differentiates = false;
    Two operator()(V x, V, const V*) const { return {x, V{}}; }
  };
  struct Centred {
    static constexpr int parameters = 1;
    static constexpr bool differentiates = false;
    Two operator()(V x, V, const V* p) const { return {x - p[0], (x - p[0]) * (x - p[0])}; }
  };
  struct Gradients {
    static constexpr int parameters = 3;
    static constexpr bool differentiates = true;
    Two operator()(V x, V dy, const V* p) const {
      const V g = gradient(x, dy, p);
      return {g, g * (x - p[0])};
    }
  };
  struct Normalise {
    static constexpr int parameters = 3;
    static constexpr bool differentiates = false;
    V operator()(V x, V, const V* p) const {
      const V y = normalised(x, p);
      if constexpr (Relu) return y < 0 ? V{} : y;  // NaN stays
      return y;
    }
  };
  struct Differentiate {
    static constexpr int parameters = 7;
    static constexpr bool differentiates = true;
    V operator()(V x, V dy, const V* p) const {
      // Of few values the gradients nearly cancel: one fused subtraction first, then what was lost.
      const V c = x - p[0];
      return p[1] * (((gradient(x, dy, p) - p[3]) - c * p[4]) - (c * p[5] + p[6]));
    }
  };

  // The mean, scale and bias of every channel, and room for four more: rows of whole vectors. What
  // the mean loses when it is rounded is made up for by the bias.
  Buffer<S> parameters() const {
    Buffer<S> rows(kParameters * stride_);
    for (i64 i = 0; i < kParameters * stride_; ++i) rows[i] = S{0};
    for (i64 c = 0; c < channels_; ++c) {
      const double bias = static_cast<double>(static_cast<const S*>(problem_.bias)[c]);
      rows[c] = static_cast<S>(problem_.mean[c]);
      rows[stride_ + c] = static_cast<S>(
          static_cast<double>(static_cast<const S*>(problem_.weight)[c]) * deviation(c));
      rows[2 * stride_ + c] =
          static_cast<S>(bias - rest(c) * static_cast<double>(rows[stride_ + c]));
    }
    return rows;
  }

  // r of a channel.
  double deviation(i64 c) const { return 1 / __builtin_sqrt(problem_.variance[c] + problem_.eps); }

  // What the mean of a channel loses when it is rounded.
  double rest(i64 c) const {
    return problem_.mean[c] - static_cast<double>(static_cast<S>(problem_.mean[c]));
  }

  // ---- sums, block by block and then of all ----

  // Roughly the mean of every channel, which the means of blocks are told from: that of the first
  // block with values.
  Buffer<double> origins() const {
    i64 block = 0;
    while (block + 1 < blocks_ && counts_[block] == 0) ++block;
    const Buffer<S> scratch(5 * stride_);
    add_up(block, 0, channels_, scratch.get(), scratch.get(), Plain{});
    Buffer<double> origin(channels_);
    for (i64 c = 0; c < channels_; ++c)
      origin[c] = static_cast<double>(scratch[c]) * share_of(counts_[block]);
    return origin;
  }

  static double share_of(double count) { return count > 0 ? 1 / count : 0; }

  // The mean of a block, and the sum of squares about it. The mean of a first sweep is off by
  // rounding; how much, the second sweep tells.
  void statistics(i64 block, i64 first, i64 end, S* scratch, const Buffer<double>& origin,
                  double* means, double* squares) const {
    S* const mean = scratch + 4 * stride_;
    const double share = share_of(counts_[block]);
    add_up(block, first, end, mean, scratch, Plain{});
    // As short a number as x has, so that half precision's differences from it are exact.
    for (i64 c = first; c < end; ++c)
      mean[c] = widen(narrow<T>(scratch[c] * static_cast<S>(share)));
    add_up(block, first, end, mean, scratch, Centred{});
    for (i64 c = first; c < end; ++c) {
      const double off = static_cast<double>(scratch[c]);
      means[c] = (static_cast<double>(mean[c]) - origin[c]) + off * share;
      squares[c] = static_cast<double>(scratch[stride_ + c]) - off * off * share;
    }
  }

  void merge(const Buffer<double>& origin, const Buffer<double>& means,
             const Buffer<double>& squares) const {
    const double share = share_of(count_);
    const Buffer<double> mean(channels_), square(channels_);
    for (i64 c = 0; c < channels_; ++c) mean[c] = square[c] = 0;
    for (i64 block = 0; block < blocks_; ++block)
      for (i64 c = 0; c < channels_; ++c)
        mean[c] += counts_[block] * share * means[block * channels_ + c];
    for (i64 block = 0; block < blocks_; ++block)
      for (i64 c = 0; c < channels_; ++c) {
        const double off = means[block * channels_ + c] - mean[c];
        square[c] += squares[block * channels_ + c] + counts_[block] * off * off;
      }
    for (i64 c = 0; c < channels_; ++c) {
      problem_.mean[c] = origin[c] + mean[c];
      problem_.variance[c] = square[c] * share < 0 ? 0 : square[c] * share;
    }
  }

  // The gradients of weight and bias, and the last four parameters.
  void finish(const Buffer<double>& sums, const Buffer<double>& products, S* rows) const {
    const double share = share_of(count_);
    const Buffer<double> sum(channels_), product(channels_);
    for (i64 c = 0; c < channels_; ++c) sum[c] = product[c] = 0;
    for (i64 block = 0; block < blocks_; ++block)
      for (i64 c = 0; c < channels_; ++c) {
        sum[c] += sums[block * channels_ + c];
        product[c] += products[block * channels_ + c];
      }
    for (i64 c = 0; c < channels_; ++c) {
      const double r = deviation(c);
      const double centred = product[c] - rest(c) * sum[c];
      const double slope = centred * r * r * share;
      static_cast<S*>(problem_.d_bias)[c] = static_cast<S>(sum[c]);
      static_cast<S*>(problem_.d_weight)[c] = static_cast<S>(centred * r);
      rows[3 * stride_ + c] = static_cast<S>(sum[c] * share);
      rows[4 * stride_ + c] = static_cast<S>(slope);
      // What these two and the mean lose when they are rounded.
      rows[5 * stride_ + c] = static_cast<S>(slope - static_cast<double>(rows[4 * stride_ + c]));
      const double lost = sum[c] * share - static_cast<double>(rows[3 * stride_ + c]);
      rows[6 * stride_ + c] = static_cast<S>(lost - rest(c) * slope);
    }
  }

  // ---- blocks: ranges of positions, counted through all images ----
  //
  // With the channels together a block is any such range, and a job takes all of its channels; with
  // the channels apart it stays within an image, and a job takes a group of channels.

  // work(block, first channel, end channel, scratch)
  template <class F>
  void over_blocks(Order order, const F& work) const {
    const i64 jobs = blocks_ * groups_;
    const WorkerBuffers<S> scratch(threads_, 5 * stride_);
    parallel(jobs, threads_, [&](int worker, i64 index) {
      const i64 job = in_pieces(index, jobs, threads_, order);
      const i64 first = job % groups_ * group_;
      work(job / groups_, first, smaller(first + group_, channels_), scratch.of(worker));
    });
  }

  // run(from, to, inside): the positions of a block, in runs within and past a clip's length.
  template <class F>
  void over_runs(i64 block, const F& run) const {
    const i64 base = problem_.channels_last ? 0 : block / pieces_ * positions_;
    const i64 within = problem_.channels_last ? all_ : positions_;
    const i64 piece = problem_.channels_last ? block : block % pieces_;
    i64 from = base + piece * length_;
    const i64 end = base + smaller((piece + 1) * length_, within);
    if (problem_.lengths == nullptr) return run(from, end, true);
    while (from < end) {
      const i64 row = from / problem_.row_length;
      const i64 start = row * problem_.row_length;
      const i64 stop = smaller(end, start + problem_.row_length);
      const i64 edge = larger(from, smaller(stop, start + problem_.lengths[row / problem_.rows]));
      if (from < edge) run(from, edge, true);
      if (edge < stop) run(edge, stop, false);
      from = stop;
    }
  }

  // Where a channel of a position is, with the channels apart.
  i64 place(i64 position, i64 channel) const {
    const i64 image = position / positions_;
    return (image * (channels_ - 1) + channel) * positions_ + position;
  }

  // ---- values ----

  template <class F>
  V x_at(i64 at, i64 count) const {
    return load_first(static_cast<const T*>(problem_.x) + at, count);
  }
  template <class F>
  V dy_at(i64 at, i64 count) const {
    if constexpr (!F::differentiates) return V{};
    return load_first(dy_ + at, count);
  }
  // A block of dy, its channels together, to the place of dx.
  void gather_dy(i64 block) const {
    over_runs(block, [&](i64 from, i64 to, bool inside) {
      if (inside)
        gather_positions(static_cast<const T*>(problem_.dy), channels_, positions_, from, to,
                         out_at(from * channels_), channels_);
    });
  }
  T* out_at(i64 at) const { return static_cast<T*>(problem_.out) + at; }

  template <class F>
  void load_parameters(const S* rows, i64 c, V* p) const {
    for (int i = 0; i < F::parameters; ++i) p[i] = load(rows + i * stride_ + c);
  }
  template <class F>
  void splat_parameters(const S* rows, i64 c, V* p) const {
    for (int i = 0; i < F::parameters; ++i) p[i] = splat(rows[i * stride_ + c]);
  }

  // The sums of both terms over the values of a block, channel by channel, to sums (2, stride).
  template <class F>
  void add_up(i64 block, i64 first, i64 end, const S* rows, S* sums, const F& term) const {
    if (!problem_.channels_last) {
      for (i64 c = first; c < end; ++c) {
        const Two sum = add_up_plane(block, c, rows, term);
        sums[c] = total<S>(sum.a);
        sums[stride_ + c] = total<S>(sum.b);
      }
      return;
    }
    // Chains of sums are short: what a few pixels add up to is put aside, to totals behind the
    // sums.
    S* const totals = sums + 2 * stride_;
    for (i64 i = 0; i < 4 * stride_; ++i) sums[i] = S{0};
    const auto put_aside = [&] {
      for (i64 i = 0; i < 2 * stride_; i += W) {
        store(totals + i, load(totals + i) + load(sums + i));
        store(sums + i, V{});
      }
    };
    i64 links = 0;
    over_runs(block, [&](i64 from, i64 to, bool inside) {
      if (!inside) return;
      while (from < to) {
        if (from + 4 <= to) {
          add_up_pixels<4>(from, rows, sums, term);
          from += 4;
        } else {
          add_up_pixels<1>(from, rows, sums, term);
          from += 1;
        }
        if (++links % kChain == 0) put_aside();
      }
    });
    put_aside();
    for (i64 i = 0; i < 2 * stride_; ++i) sums[i] = totals[i];
  }

  template <int Pixels, class F>
  void add_up_pixels(i64 pixel, const S* rows, S* sums, const F& term) const {
    for (i64 c = 0; c < channels_; c += W) {
      V p[kParameters];
      load_parameters<F>(rows, c, p);
      Two two[4] = {};
#pragma GCC unroll 4
      for (int i = 0; i < Pixels; ++i) {
        const i64 at = (pixel + i) * channels_ + c;
        two[i] = term(x_at<F>(at, channels_ - c), dy_at<F>(at, channels_ - c), p);
      }
      const auto add = [&](S* sum, V x) { store(sum, load(sum) + x); };
      add(sums + c, (two[0].a + two[1].a) + (two[2].a + two[3].a));
      add(sums + stride_ + c, (two[0].b + two[1].b) + (two[2].b + two[3].b));
    }
  }

  template <class F>
  Two add_up_plane(i64 block, i64 c, const S* rows, const F& term) const {
    V p[kParameters];
    splat_parameters<F>(rows, c, p);
    Two sum[4] = {};
    over_runs(block, [&](i64 from, i64 to, bool inside) {
      if (!inside) return;
      i64 at = place(from, c);
      const i64 stop = at + to - from;
      for (; at + 4 * W <= stop; at += 4 * W)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const Two two = term(x_at<F>(at + i * W, W), dy_at<F>(at + i * W, W), p);
          sum[i].a += two.a;
          sum[i].b += two.b;
        }
      for (; at < stop; at += W) {
        const Two two = term(x_at<F>(at, stop - at), dy_at<F>(at, stop - at), p);
        sum[0].a += only_first(two.a, stop - at);
        sum[0].b += only_first(two.b, stop - at);
      }
    });
    return {(sum[0].a + sum[1].a) + (sum[2].a + sum[3].a),
            (sum[0].b + sum[1].b) + (sum[2].b + sum[3].b)};
  }

  static V only_first(V x, i64 count) {
    for (i64 i = count; i < W; ++i) x[i] = S{0};
    return x;
  }

  // Whether the result is of so many bytes and consists of whole lines.
  bool streams(i64 least) const {
    constexpr i64 line = 64, bytes = sizeof(T);
    return kStreams && __is_same(T, S) && problem_.channels_last &&
           reinterpret_cast<std::uintptr_t>(problem_.out) % line == 0 &&
           channels_ * bytes % line == 0 && all_ * channels_ * bytes >= least;
  }

  // The results of a block's values; 0 past a clip's length.
  template <class F>
  void write(i64 block, i64 first, i64 end, const S* rows, const F& value, bool streamed) const {
    if (streamed) {
      write_together<true>(block, rows, value);
      return finish_streams();
    }
    if (problem_.channels_last) return write_together<false>(block, rows, value);
    for (i64 c = first; c < end; ++c) {
      V p[kParameters];
      splat_parameters<F>(rows, c, p);
      over_runs(block, [&](i64 from, i64 to, bool inside) {
        i64 at = place(from, c);
        const i64 stop = at + to - from;
        if (!inside) return clear(at, to - from);
        for (; at < stop; at += W)
          store_first<T>(out_at(at), value(x_at<F>(at, stop - at), dy_at<F>(at, stop - at), p),
                         stop - at);
      });
    }
  }

  template <bool Streamed, class F>
  void write_together(i64 block, const S* rows, const F& value) const {
    over_runs(block, [&](i64 from, i64 to, bool inside) {
      if (!inside) return clear(from * channels_, (to - from) * channels_);
      for (; from + 4 <= to; from += 4) write_pixels<4, Streamed>(from, rows, value);
      for (; from < to; ++from) write_pixels<1, Streamed>(from, rows, value);
    });
  }

  template <int Pixels, bool Streamed, class F>
  void write_pixels(i64 pixel, const S* rows, const F& value) const {
    for (i64 c = 0; c < channels_; c += W) {
      V p[kParameters];
      load_parameters<F>(rows, c, p);
#pragma GCC unroll 4
      for (int i = 0; i < Pixels; ++i) {
        const i64 at = (pixel + i) * channels_ + c, count = channels_ - c;
        const V result = value(x_at<F>(at, count), dy_at<F>(at, count), p);
        if constexpr (Streamed && __is_same(T, S)) {
          stream(out_at(at), result);
        } else {
          store_first<T>(out_at(at), result, count);
        }
      }
    }
  }

  void clear(i64 at, i64 count) const {
    __builtin_memset(out_at(at), 0, static_cast<std::size_t>(count) * sizeof(T));
  }

  const BatchNormProblem& problem_;
  bool gathers_;  // dy, whose channels are apart, into dx, from where it is then read
  const T* dy_;
  i64 channels_, stride_, positions_, all_, length_, pieces_, blocks_, group_, groups_;
  int threads_;
  Buffer<double> counts_;  // values of a channel in each block
  double count_ = 0;
};

}  // namespace fbp::FBP_ISA

// Local response normalisation, one read and one write: y = x / s^beta with s = k + alpha / size *
// sum of x^2 over the channels c - size / 2 to c + (size - 1) / 2. The backward computes s again:
//
//   dx_c = dy_c s_c^-beta - 2 alpha beta / size * x_c * sum over windows j that hold c of dy_j x_j
//   s_j^(-beta - 1)

#pragma once

#include "elementary.h"
#include "layout.h"
#include "memory.h"

namespace fbp::FBP_ISA {

// One Newton step on s^3 y^4 = 1 from y, nearly s^-0.75.
template <class V>
inline V refine(V s, V y) {
  const V t = s * y * y;
  return y + y * (1 - s * t * t) / 4;
}

// The largest number in place of infinity, of which the step would make NaN; it gives 0.
inline Vec<float> finite(Vec<float> s) { return at_most(s, splat(__FLT_MAX__)); }
inline Vec<double> finite(Vec<double> s) { return at_most(s, splat(__DBL_MAX__)); }

// 1 / s and s^-0.75.
template <class S>
inline void three_quarters(Vec<S> s, Vec<S>& inverse, Vec<S>& root) {
  const Vec<S> half = square_root(s);
  inverse = 1 / s;
  root = refine(finite(s), 1 / (half * square_root(half)));
}

#if defined(__AVX512F__)
inline Vec<float> estimate_root(Vec<float> x) {
  return _mm512_maskz_rsqrt14_ps(0xffff, x);  // masked as in at_least
}

// From estimates of 14 bits, without square roots and divisions, which are slow.
template <>
inline void three_quarters<float>(Vec<float> s, Vec<float>& inverse, Vec<float>& root) {
  const Vec<float> half = estimate_root(s);
  const Vec<float> squared = half * half;
  const Vec<float> fourth = finite(estimate_root(half));
  const Vec<float> bounded = finite(s);
  inverse = squared * (2 - bounded * squared);
  root = refine(bounded, squared * fourth);
}
#endif

// The formula for one vector. Loops hold it in a variable of their own: what they store might be a
// member of something larger, as far as the compiler knows, which would load it again each time.
// ThreeQuarters: beta is 0.75, as nearly everywhere, and needs two square roots only.
template <class T, bool ThreeQuarters>
class LrnFormula {
 public:
  using S = typename AccumulateIn<T>::type;

  explicit LrnFormula(const LrnProblem& problem)
      : alpha_(static_cast<S>(problem.alpha / static_cast<double>(problem.size))),
        power_(static_cast<S>(-problem.beta)),
        k_(static_cast<S>(problem.k)),
        slope_(
            static_cast<S>(2 * problem.alpha * problem.beta / static_cast<double>(problem.size))),
        cut_(problem.relu ? S{0} : static_cast<S>(__builtin_nan(""))) {}

  Vec<S> input(const T* x, i64 count) const { return at_least(load_first(x, count), splat(cut_)); }

  // 1 / s and s^-beta.
  void powers(Vec<S> squares, Vec<S>& inverse, Vec<S>& root) const {
    const Vec<S> s = k_ + alpha_ * squares;
    if constexpr (ThreeQuarters) {
      three_quarters<S>(s, inverse, root);
    } else {
      inverse = 1 / s;
      root = power_(s);
    }
  }

  Vec<S> output(Vec<S> x, Vec<S> squares) const {
    Vec<S> inverse, root;
    powers(squares, inverse, root);
    return x * root;
  }

  // The gradient, zero where the ReLU cut.
  Vec<S> d_input(Vec<S> direct, Vec<S> x, Vec<S> terms) const {
    const Vec<S> g = direct - slope_ * x * terms;
    return x <= cut_ ? Vec<S>{} : g;
  }

 private:
  S alpha_;
  Power<S> power_;
  S k_, slope_;
  S cut_;  // up to here the ReLU cuts; NaN, with which nothing compares, where there is none
};

// The usual window, five wide, along a row that comes vector by vector.
template <class S>
class RowWindows {
 public:
  // Takes the vector after the last one; returns the sums around the elements of the last one.
  Vec<S> next(Vec<S> after) {
    const Vec<S> pairs = last_ + lanes_from<S, 1>(last_, after);
    const Vec<S> sums =
        (lanes_from<S, kWidth<S> - 2>(pairs_, pairs) + pairs) + lanes_from<S, 2>(last_, after);
    last_ = after;
    pairs_ = pairs;
    return sums;
  }

 private:
  Vec<S> last_{}, pairs_{};  // each element and the next one
};

template <class T, bool ThreeQuarters>
class Lrn {
 public:
  explicit Lrn(const LrnProblem& problem)
      : formula_(problem),
        images_(problem.images),
        channels_(problem.channels),
        positions_(problem.positions),
        size_(problem.size),
        left_(problem.size / 2),
        right_((problem.size - 1) / 2),
        together_(problem.channels_last),
        dy_together_(problem.dy_channels_last),
        x_(static_cast<const T*>(problem.x)),
        dy_(static_cast<const T*>(problem.dy)),
        out_(static_cast<T*>(problem.out)),
        threads_(threads_for(static_cast<double>(images_ * positions_) *
                             static_cast<double>(channels_ * (size_ + 20)))),
        // In whole vectors: the last one of a channel, which is compiled apart and may round in
        // another way, has the same elements for any number of threads.
        chunk_(round_up(share_of_job(images_ * positions_, kLeastChunk, kMostChunk), W)),
        zeros_(chunk_) {
    for (i64 i = 0; i < chunk_; ++i) zeros_[i] = T{};
  }

  void forward() const {
    if (together_) {
      over_rows(row_length(), [&](i64 first, i64 end, S* scratch) {
        clear(scratch, row_length());
        for (i64 row = first; row < end; ++row)
          size_ == kUsual ? forward_usual_row(row * channels_)
                          : forward_row(row * channels_, scratch);
      });
    } else {
      over_chunks(0, [&](i64 at, i64 count, S*) {
        size_ == kUsual ? forward_groups(at, count) : forward_chunk(at, count);
      });
    }
  }

  void backward() const {
    if (together_) {
      const i64 transposed = dy_together_ ? 0 : rows_of_job() * row_length();
      over_rows(3 * row_length() + transposed, [&](i64 first, i64 end, S* scratch) {
        clear(scratch, 3 * row_length());
        if (!dy_together_)
          gather_positions(dy_, channels_, positions_, first, end, scratch + 3 * row_length(),
                           row_length());
        for (i64 row = first; row < end; ++row)
          dy_together_
              ? backward_row(row * channels_, dy_ + row * channels_, scratch)
              : backward_row(row * channels_, scratch + (3 + row - first) * row_length(), scratch);
      });
    } else {
      over_chunks(2 * larger<i64>(size_, kGroup) * chunk_, [&](i64 at, i64 count, S* scratch) {
        size_ == kUsual ? backward_groups(at, count, scratch) : backward_chunk(at, count, scratch);
      });
    }
  }

 private:
  using Formula = LrnFormula<T, ThreeQuarters>;
  using S = typename Formula::S;
  static constexpr i64 W = kWidth<S>;
  // Positions worked on at a time, through all channels, or elements, in whole rows. What the
  // processor fetches past the end of one thread's delays the other thread that has what comes
  // next: with the least of them, two threads take up to 1.5 times as long.
  static constexpr i64 kLeastChunk = 512, kMostChunk = 4096;
  static constexpr i64 kLeastRows = 8192, kMostRows = 65536;
  static constexpr int kUsual = 5;  // channels of the window nearly everywhere
  static constexpr int kGroup = 4;  // channels worked on together then

  // What a job does of all there is to do.
  i64 share_of_job(i64 all, i64 least, i64 most) const {
    return smaller(most, larger(least, all / (4 * threads_)));
  }

  // Sum of term(0) to term(count - 1).
  template <class F>
  static Vec<S> sum(i64 count, const F& term) {
    Vec<S> result{};
    for (i64 j = 0; j < count; ++j) result += term(j);
    return result;
  }

  static void clear(S* scratch, i64 count) {
    for (i64 i = 0; i < count; ++i) scratch[i] = S{0};
  }

  // ---- channels apart: a chunk of positions, channel by channel, so that a window is still in the
  // cache ----

  template <class F>
  void over_chunks(i64 scratch_elements, const F& work) const {
    const i64 chunks = ceil_div(positions_, chunk_);
    const WorkerBuffers<S> scratch(threads_, scratch_elements);
    parallel(images_ * chunks, threads_, [&](int worker, i64 index) {
      const i64 job = in_pieces(index, images_ * chunks, threads_, kForwards);
      const i64 image = job / chunks, position = job % chunks * chunk_;
      work(image * channels_ * positions_ + position, smaller(chunk_, positions_ - position),
           scratch.of(worker));
    });
  }

  // The sum of squares about channel c at one vector of positions; `at` is where channel 0 is.
  Vec<S> squares_at(i64 at, i64 c, i64 count) const {
    const i64 first = larger<i64>(c - left_, 0);
    const i64 end = smaller(c + right_ + 1, channels_);
    return sum(end - first, [&](i64 j) {
      const Vec<S> x = formula_.input(x_ + at + (first + j) * positions_, count);
      return x * x;
    });
  }

  void forward_chunk(i64 at, i64 count) const {
    for (i64 c = 0; c < channels_; ++c)
      for (i64 i = 0; i < count; i += W) {
        const i64 e = at + c * positions_ + i;
        store_first<T>(
            out_ + e,
            formula_.output(formula_.input(x_ + e, count - i), squares_at(at + i, c, count - i)),
            count - i);
      }
  }

  // The last `size` channels of each buffer form a ring; channels that do not exist are zero.
  void backward_chunk(i64 at, i64 count, S* direct) const {
    S* const terms = direct + size_ * chunk_;  // dy x s^(-beta - 1), beside dy s^-beta
    const auto place = [&](i64 channel) { return channel % size_ * chunk_; };
    clear(terms, size_ * chunk_);
    for (i64 j = 0; j < channels_ + left_; ++j) {
      S* const own_direct = direct + place(j);
      S* const own_terms = terms + place(j);
      for (i64 i = 0; i < count; i += W) {
        if (j >= channels_) {
          store(own_terms + i, Vec<S>{});
          continue;
        }
        const i64 e = at + j * positions_ + i;
        Vec<S> inverse, root;
        formula_.powers(squares_at(at + i, j, count - i), inverse, root);
        const Vec<S> d = load_first(dy_ + e, count - i) * root;
        store(own_direct + i, d);
        store(own_terms + i, d * formula_.input(x_ + e, count - i) * inverse);
      }
      const i64 c = j - left_;
      if (c < 0) continue;
      const S* const centre = direct + place(c);
      for (i64 i = 0; i < count; i += W) {
        const i64 e = at + c * positions_ + i;
        const Vec<S> total = sum(size_, [&](i64 slot) { return load(terms + slot * chunk_ + i); });
        store_first<T>(out_ + e,
                       formula_.d_input(load(centre + i), formula_.input(x_ + e, count - i), total),
                       count - i);
      }
    }
  }

  // The usual window: a few neighbouring channels at a time, whose windows share what is in them.

  static constexpr int kReach = kUsual / 2, kShared = kGroup + 2 * kReach;

  bool exists(i64 channel) const { return channel >= 0 && channel < channels_; }

  // Where a chunk of a channel starts; zeros where there is no such channel.
  const T* chunk_of(const T* tensor, i64 at, i64 channel) const {
    return exists(channel) ? tensor + at + channel * positions_ : zeros_.get();
  }

  // Channels c - kReach to c + kGroup + kReach - 1 of a chunk, and those that come then.
  struct Group {
    const T* from[kShared + kGroup];

    Group(const Lrn& lrn, i64 at, i64 c) {
      for (int j = 0; j < kShared + kGroup; ++j) from[j] = lrn.chunk_of(lrn.x_, at, c - kReach + j);
    }

    void load(const Formula& formula, i64 i, i64 lanes, Vec<S>* x, Vec<S>* sums) const {
      Vec<S> squares[kShared];
#pragma GCC unroll 8
      for (int j = 0; j < kShared; ++j) {
        x[j] = formula.input(from[j] + i, lanes);
        squares[j] = x[j] * x[j];
      }
#pragma GCC unroll 4
      for (int j = 0; j < kGroup; ++j) __builtin_prefetch(from[kShared + j] + i);
      sum_windows(squares, sums);
    }
  };

  static void sum_windows(const Vec<S>* terms, Vec<S>* sums) {
    const Vec<S> middle = terms[3] + terms[4];
    const Vec<S> lower = terms[2] + middle, upper = middle + terms[5];
    sums[0] = (terms[0] + terms[1]) + lower;
    sums[1] = (terms[1] + terms[5]) + lower;
    sums[2] = (terms[2] + terms[6]) + upper;
    sums[3] = (terms[6] + terms[7]) + upper;
  }

  // f(i, lanes) for each vector of a chunk; lanes are a constant to the compiler but for the last.
  template <class F>
  static void over_vectors(i64 count, const F& f) {
    i64 i = 0;
    for (; i + W <= count; i += W) f(i, W);
    if (i < count) f(i, count - i);
  }

  void forward_groups(i64 at, i64 count) const {
    const Formula formula = formula_;
    for (i64 c = 0; c < channels_; c += kGroup) {
      const Group group(*this, at, c);
      const i64 stride = positions_, results = smaller<i64>(kGroup, channels_ - c);
      T* const to = out_ + at + c * stride;
      over_vectors(count, [=](i64 i, i64 lanes) __attribute__((always_inline)) {
        Vec<S> x[kShared], sums[kGroup];
        group.load(formula, i, lanes, x, sums);
#pragma GCC unroll 4
        for (int j = 0; j < kGroup; ++j)
          if (j < results)
            store_first<T>(to + j * stride + i, formula.output(x[kReach + j], sums[j]), lanes);
      });
    }
  }

  // What a group's windows give completes the gradients of channels from kReach before it on; what
  // the next one needs of it is kept: all terms, and what is direct of the last channels.
  void backward_groups(i64 at, i64 count, S* kept) const {
    constexpr int rows = kGroup + kReach;
    const Formula formula = formula_;
    const i64 chunk = chunk_;
    clear(kept, rows * chunk);
    for (i64 c = 0; c < channels_ + kReach; c += kGroup) {
      const Group group(*this, at, c);
      const T* dy[2 * kGroup];
      for (int j = 0; j < 2 * kGroup; ++j) dy[j] = chunk_of(dy_, at, c + j);
      const i64 stride = positions_;
      const i64 first = c == 0 ? kReach : 0, end = smaller<i64>(kGroup, channels_ - (c - kReach));
      T* const to = out_ + at + (c - kReach) * stride;
      over_vectors(count, [=](i64 i, i64 lanes) __attribute__((always_inline)) {
        Vec<S> x[kShared], sums[kGroup], terms[2 * kGroup], direct[rows], totals[kGroup];
        group.load(formula, i, lanes, x, sums);
#pragma GCC unroll 4
        for (int j = 0; j < kGroup; ++j) {
          __builtin_prefetch(dy[kGroup + j] + i);
          Vec<S> inverse, root;
          formula.powers(sums[j], inverse, root);
          direct[kReach + j] = load_first(dy[j] + i, lanes) * root;
          terms[j] = load(kept + j * chunk + i);
          terms[kGroup + j] = direct[kReach + j] * x[kReach + j] * inverse;
          store(kept + j * chunk + i, terms[kGroup + j]);
        }
#pragma GCC unroll 2
        for (int j = 0; j < kReach; ++j) {
          direct[j] = load(kept + (kGroup + j) * chunk + i);
          store(kept + (kGroup + j) * chunk + i, direct[kGroup + j]);
        }
        sum_windows(terms, totals);
#pragma GCC unroll 4
        for (int j = 0; j < kGroup; ++j)
          if (j >= first && j < end)
            store_first<T>(to + j * stride + i, formula.d_input(direct[j], x[j], totals[j]), lanes);
      });
    }
  }

  // ---- channels together: a row of channels, with zeros before and after it ----

  i64 rows_of_job() const {
    const i64 elements = share_of_job(images_ * positions_ * channels_, kLeastRows, kMostRows);
    return larger<i64>(elements / row_length(), 1);
  }

  template <class F>
  void over_rows(i64 scratch_elements, const F& work) const {
    const i64 rows = images_ * positions_, per_job = rows_of_job();
    const WorkerBuffers<S> scratch(threads_, scratch_elements);
    const i64 jobs = ceil_div(rows, per_job);
    parallel(jobs, threads_, [&](int worker, i64 index) {
      const i64 job = in_pieces(index, jobs, threads_, kForwards);
      work(job * per_job, smaller(rows, (job + 1) * per_job), scratch.of(worker));
    });
  }

  i64 row_length() const { return round_up(channels_, W) + round_up(size_, W) + W; }

  Vec<S> window_sum(const S* from) const {
    return sum(size_, [&](i64 j) { return load(from + j); });
  }

  // Behind `left_` zeros, and before as many as a window and a vector reach.
  void square_row(i64 at, S* squares) const {
    for (i64 c = 0; c < channels_; c += W) {
      const Vec<S> x = formula_.input(x_ + at + c, channels_ - c);
      store_first<S>(squares + left_ + c, x * x, channels_ - c);
    }
  }

  void forward_row(i64 at, S* squares) const {
    square_row(at, squares);
    for (i64 c = 0; c < channels_; c += W) {
      const i64 count = channels_ - c;
      store_first<T>(out_ + at + c,
                     formula_.output(formula_.input(x_ + at + c, count), window_sum(squares + c)),
                     count);
    }
  }

  // dy: of T or, where it was transposed, of S.
  template <class D>
  void backward_row(i64 at, const D* dy, S* scratch) const {
    size_ == kUsual ? backward_usual_row(at, dy) : backward_any_row(at, dy, scratch);
  }

  template <class D>
  void backward_any_row(i64 at, const D* dy, S* squares) const {
    S* const direct = squares + row_length();
    S* const terms = direct + row_length();  // behind `right_` zeros
    square_row(at, squares);
    for (i64 c = 0; c < channels_; c += W) {
      const i64 count = channels_ - c;
      Vec<S> inverse, root;
      formula_.powers(window_sum(squares + c), inverse, root);
      const Vec<S> d = load_first(dy + c, count) * root;
      store(direct + c, d);
      store_first<S>(terms + right_ + c, d * formula_.input(x_ + at + c, count) * inverse, count);
    }
    for (i64 c = 0; c < channels_; c += W) {
      const i64 count = channels_ - c;
      store_first<T>(out_ + at + c,
                     formula_.d_input(load(direct + c), formula_.input(x_ + at + c, count),
                                      window_sum(terms + c)),
                     count);
    }
  }

  // The usual window: in registers.

  void forward_usual_row(i64 at) const {
    const Formula formula = formula_;
    const i64 channels = channels_;
    const T* const from = x_ + at;
    T* const to = out_ + at;
    RowWindows<S> windows;
    Vec<S> x = formula.input(from, channels);
    windows.next(x * x);
    for (i64 c = 0; c < channels; c += W) {
      const i64 left = channels - c - W;
      const Vec<S> after = left > 0 ? formula.input(from + c + W, left) : Vec<S>{};
      store_first<T>(to + c, formula.output(x, windows.next(after * after)), channels - c);
      x = after;
    }
  }

  template <class D>
  void backward_usual_row(i64 at, const D* dy) const {
    const Formula formula = formula_;
    const i64 channels = channels_;
    const T* const from = x_ + at;
    T* const to = out_ + at;
    RowWindows<S> squares, terms;
    Vec<S> x = formula.input(from, channels), before{}, direct{};
    squares.next(x * x);
    for (i64 c = 0; c < channels; c += W) {
      const i64 left = channels - c - W;
      const Vec<S> after = left > 0 ? formula.input(from + c + W, left) : Vec<S>{};
      Vec<S> inverse, root;
      formula.powers(squares.next(after * after), inverse, root);
      const Vec<S> d = load_first(dy + c, channels - c) * root;
      const Vec<S> total = terms.next(d * x * inverse);
      if (c > 0) store(to + c - W, formula.d_input(direct, before, total));
      direct = d;
      before = x;
      x = after;
    }
    const i64 last = (channels - 1) / W * W;
    store_first<T>(to + last, formula.d_input(direct, before, terms.next(Vec<S>{})),
                   channels - last);
  }

  const Formula formula_;
  const i64 images_, channels_, positions_, size_, left_, right_;
  const bool together_, dy_together_;
  const T* const x_;
  const T* const dy_;
  T* const out_;
  const int threads_;
  const i64 chunk_;
  const Buffer<T> zeros_;  // a chunk of a channel that does not exist
};

}  // namespace fbp::FBP_ISA

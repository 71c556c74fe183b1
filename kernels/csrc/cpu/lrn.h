// Local response normalisation, one read and one write: y = x / s^beta with s = k + alpha / size *
// sum of x^2 over the channels c - size / 2 to c + (size - 1) / 2. The backward computes s again:
//
//   dx_c = dy_c s_c^-beta - 2 alpha beta / size * x_c * sum over windows j that hold c of dy_j x_j
//   s_j^(-beta - 1)

#pragma once

#include "elementary.h"
#include "memory.h"

namespace fbp::FBP_ISA {

// One Newton step on s^3 y^4 = 1 from y, nearly s^-0.75. It makes NaN of an infinite s, which must
// give 0.
template <class V>
inline V refine(V s, V y) {
  const V t = s * y * y;
  const V refined = y + y * (1 - s * t * t) / 4;
  return y == 0 ? y : refined;
}

// 1 / s and s^-0.75.
template <class V>
inline void three_quarters(V s, V& inverse, V& root) {
  const V half = square_root(s);
  inverse = 1 / s;
  root = refine(s, 1 / (half * square_root(half)));
}

#if defined(__AVX512F__)
// From estimates of 14 bits, without square roots and divisions, which are slow.
inline void three_quarters(Vec<float> s, Vec<float>& inverse, Vec<float>& root) {
  const Vec<float> half = _mm512_rsqrt14_ps(s);
  const Vec<float> squared = half * half;
  const Vec<float> fourth = _mm512_rsqrt14_ps(half);
  // Of an infinite s, the squares are 0 and the fourth root is not finite.
  inverse = squared == 0 ? squared : squared * (2 - s * squared);
  root = refine(s, squared == 0 ? squared : squared * fourth);
}
#endif

// ThreeQuarters: beta is 0.75, as nearly everywhere, and needs two square roots only.
template <class T, bool ThreeQuarters>
class Lrn {
 public:
  explicit Lrn(const LrnProblem& problem)
      : problem_(problem),
        left_(problem.size / 2),
        right_((problem.size - 1) / 2),
        alpha_(static_cast<S>(problem.alpha / static_cast<double>(problem.size))),
        power_(static_cast<S>(-problem.beta)),
        k_(static_cast<S>(problem.k)),
        slope_(
            static_cast<S>(2 * problem.alpha * problem.beta / static_cast<double>(problem.size))),
        threads_(threads_for(static_cast<double>(problem.images * problem.positions) *
                             static_cast<double>(problem.channels * (problem.size + 20)))) {}

  void forward() const {
    if (problem_.channels_last) {
      over_rows(1, [&](i64 at, S* scratch) { forward_row(at, scratch); });
    } else {
      over_chunks(0, [&](i64 at, i64 count, S*) {
        problem_.size == kUsual ? forward_groups(at, count) : forward_chunk(at, count);
      });
    }
  }

  void backward() const {
    if (problem_.channels_last) {
      over_rows(3, [&](i64 at, S* scratch) { backward_row(at, scratch); });
    } else {
      over_chunks(2 * larger<i64>(problem_.size, kGroup), [&](i64 at, i64 count, S* scratch) {
        problem_.size == kUsual ? backward_groups(at, count, scratch)
                                : backward_chunk(at, count, scratch);
      });
    }
  }

 private:
  using S = typename AccumulateIn<T>::type;
  static constexpr i64 W = kWidth<S>;
  static constexpr i64 kChunk = 512;         // positions worked on at a time, through all channels
  static constexpr int kUsual = 5;           // channels of the window nearly everywhere
  static constexpr int kGroup = 4;           // channels worked on together then
  static constexpr i64 kRowElements = 8192;  // at least, for one job over rows

  // ---- elements ----

  Vec<S> input(i64 at, i64 count) const {
    const Vec<S> x = load_first(static_cast<const T*>(problem_.x) + at, count);
    if (!problem_.relu) return x;
    return x < 0 ? Vec<S>{} : x;  // NaN stays
  }
  Vec<S> d_output(i64 at, i64 count) const {
    return load_first(static_cast<const T*>(problem_.dy) + at, count);
  }
  void write(i64 at, i64 count, Vec<S> y) const {
    store_first<T>(static_cast<T*>(problem_.out) + at, y, count);
  }
  Vec<S> scale(Vec<S> squares) const { return k_ + alpha_ * squares; }

  // 1 / s and s^-beta.
  void powers(Vec<S> s, Vec<S>& inverse, Vec<S>& root) const {
    if constexpr (ThreeQuarters) {
      three_quarters(s, inverse, root);
    } else {
      inverse = 1 / s;
      root = power_(s);
    }
  }

  // The gradient, zero where the ReLU cut.
  Vec<S> d_input(Vec<S> direct, Vec<S> x, Vec<S> terms) const {
    const Vec<S> g = direct - slope_ * x * terms;
    return problem_.relu ? (x <= 0 ? Vec<S>{} : g) : g;
  }

  // Sum of term(0) to term(count - 1), unrolled for the usual window.
  template <class F>
  static Vec<S> sum(i64 count, const F& term) {
    Vec<S> result{};
    if (count == 5) {
#pragma GCC unroll 5
      for (i64 j = 0; j < 5; ++j) result += term(j);
    } else {
      for (i64 j = 0; j < count; ++j) result += term(j);
    }
    return result;
  }

  // ---- channels apart: a chunk of positions, channel by channel, so that a window is still in the
  // cache ----

  template <class F>
  void over_chunks(i64 buffers, const F& work) const {
    const i64 chunks = ceil_div(problem_.positions, kChunk);
    const WorkerBuffers<S> scratch(threads_, buffers * kChunk);
    parallel(problem_.images * chunks, threads_, [&](int worker, i64 job) {
      const i64 position = job % chunks * kChunk;
      work(job / chunks * problem_.channels * problem_.positions + position,
           smaller(kChunk, problem_.positions - position), scratch.of(worker));
    });
  }

  // s of channel c at one vector of positions; `at` is where channel 0 is.
  Vec<S> scale_at(i64 at, i64 c, i64 count) const {
    const i64 first = larger<i64>(c - left_, 0);
    const i64 end = smaller(c + right_ + 1, problem_.channels);
    return scale(sum(end - first, [&](i64 j) {
      const Vec<S> x = input(at + (first + j) * problem_.positions, count);
      return x * x;
    }));
  }

  void forward_chunk(i64 at, i64 count) const {
    for (i64 c = 0; c < problem_.channels; ++c)
      for (i64 i = 0; i < count; i += W) {
        Vec<S> inverse, root;
        powers(scale_at(at + i, c, count - i), inverse, root);
        const i64 e = at + c * problem_.positions + i;
        write(e, count - i, input(e, count - i) * root);
      }
  }

  // The last `size` channels of each buffer form a ring; channels that do not exist are zero.
  void backward_chunk(i64 at, i64 count, S* direct) const {
    S* const terms = direct + problem_.size * kChunk;  // dy x s^(-beta - 1), beside dy s^-beta
    const auto place = [&](i64 channel) { return channel % problem_.size * kChunk; };
    for (i64 i = 0; i < problem_.size * kChunk; ++i) terms[i] = S{0};
    for (i64 j = 0; j < problem_.channels + left_; ++j) {
      S* const own_direct = direct + place(j);
      S* const own_terms = terms + place(j);
      for (i64 i = 0; i < count; i += W) {
        if (j >= problem_.channels) {
          store(own_terms + i, Vec<S>{});
          continue;
        }
        const i64 e = at + j * problem_.positions + i;
        Vec<S> inverse, root;
        powers(scale_at(at + i, j, count - i), inverse, root);
        const Vec<S> d = d_output(e, count - i) * root;
        store(own_direct + i, d);
        store(own_terms + i, d * input(e, count - i) * inverse);
      }
      const i64 c = j - left_;
      if (c < 0) continue;
      const S* const centre = direct + place(c);
      for (i64 i = 0; i < count; i += W) {
        const i64 e = at + c * problem_.positions + i;
        const Vec<S> total =
            sum(problem_.size, [&](i64 slot) { return load(terms + slot * kChunk + i); });
        write(e, count - i, d_input(load(centre + i), input(e, count - i), total));
      }
    }
  }

  // The usual window: a few neighbouring channels at a time, whose windows share what is in them.

  static constexpr int kReach = kUsual / 2, kShared = kGroup + 2 * kReach;

  // Channels c - kReach to c + kGroup + kReach - 1 at one vector of positions; `at` is where
  // channel 0 is. Those that do not exist are zero.
  struct Group {
    Vec<S> x[kShared], sums[kGroup];

    Group(const Lrn& lrn, i64 at, i64 c, i64 count) {
      Vec<S> squares[kShared];
#pragma GCC unroll 8
      for (int j = 0; j < kShared; ++j) {
        const i64 channel = c - kReach + j;
        x[j] = lrn.exists(channel) ? lrn.input(at + channel * lrn.problem_.positions, count)
                                   : Vec<S>{};
        squares[j] = x[j] * x[j];
      }
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

  bool exists(i64 channel) const { return channel >= 0 && channel < problem_.channels; }

  void forward_groups(i64 at, i64 count) const {
    for (i64 c = 0; c < problem_.channels; c += kGroup)
      for (i64 i = 0; i < count; i += W) {
        const Group group(*this, at + i, c, count - i);
#pragma GCC unroll 4
        for (int j = 0; j < kGroup; ++j) {
          if (!exists(c + j)) break;
          Vec<S> inverse, root;
          powers(scale(group.sums[j]), inverse, root);
          write(at + (c + j) * problem_.positions + i, count - i, group.x[kReach + j] * root);
        }
      }
  }

  // What a group's windows give completes the gradients of channels from kReach before it on; what
  // the next one needs of it is kept: all terms, and what is direct of the last channels.
  void backward_groups(i64 at, i64 count, S* kept) const {
    constexpr int rows = kGroup + kReach;
    for (i64 i = 0; i < rows * kChunk; ++i) kept[i] = S{0};
    for (i64 c = 0; c < problem_.channels + kReach; c += kGroup)
      for (i64 i = 0; i < count; i += W) {
        const Group group(*this, at + i, c, count - i);
        Vec<S> terms[2 * kGroup], direct[rows], totals[kGroup];
#pragma GCC unroll 4
        for (int j = 0; j < kGroup; ++j) {
          Vec<S> inverse, root;
          powers(scale(group.sums[j]), inverse, root);
          const i64 e = at + (c + j) * problem_.positions + i;
          const Vec<S> dy = exists(c + j) ? d_output(e, count - i) : Vec<S>{};
          direct[kReach + j] = dy * root;
          terms[j] = load(kept + j * kChunk + i);
          terms[kGroup + j] = direct[kReach + j] * group.x[kReach + j] * inverse;
          store(kept + j * kChunk + i, terms[kGroup + j]);
        }
#pragma GCC unroll 2
        for (int j = 0; j < kReach; ++j) {
          direct[j] = load(kept + (kGroup + j) * kChunk + i);
          store(kept + (kGroup + j) * kChunk + i, direct[kGroup + j]);
        }
        sum_windows(terms, totals);
#pragma GCC unroll 4
        for (int j = 0; j < kGroup; ++j)
          if (const i64 channel = c - kReach + j; exists(channel))
            write(at + channel * problem_.positions + i, count - i,
                  d_input(direct[j], group.x[j], totals[j]));
      }
  }

  // ---- channels together: a row of channels, with zeros before and after it ----

  template <class F>
  void over_rows(i64 buffers, const F& work) const {
    const i64 rows = problem_.images * problem_.positions;
    const i64 per_job = larger<i64>(kRowElements / problem_.channels, 1);
    const WorkerBuffers<S> scratch(threads_, buffers * row_length());
    parallel(ceil_div(rows, per_job), threads_, [&](int worker, i64 job) {
      S* const own = scratch.of(worker);
      for (i64 i = 0; i < buffers * row_length(); ++i) own[i] = S{0};
      for (i64 row = job * per_job; row < smaller(rows, (job + 1) * per_job); ++row)
        work(row * problem_.channels, own);
    });
  }

  i64 row_length() const { return round_up(problem_.channels, W) + problem_.size + W; }

  Vec<S> window_sum(const S* from) const {
    return sum(problem_.size, [&](i64 j) { return load(from + j); });
  }

  void square_row(i64 at, S* squares) const {
    for (i64 c = 0; c < problem_.channels; c += W) {
      const Vec<S> x = input(at + c, problem_.channels - c);
      store_first<S>(squares + left_ + c, x * x, problem_.channels - c);
    }
  }

  void forward_row(i64 at, S* squares) const {
    square_row(at, squares);
    for (i64 c = 0; c < problem_.channels; c += W) {
      const i64 count = problem_.channels - c;
      Vec<S> inverse, root;
      powers(scale(window_sum(squares + c)), inverse, root);
      write(at + c, count, input(at + c, count) * root);
    }
  }

  void backward_row(i64 at, S* squares) const {
    S* const direct = squares + row_length();
    S* const terms = direct + row_length();  // behind `right_` zeros
    square_row(at, squares);
    for (i64 c = 0; c < problem_.channels; c += W) {
      const i64 count = problem_.channels - c;
      Vec<S> inverse, root;
      powers(scale(window_sum(squares + c)), inverse, root);
      const Vec<S> d = d_output(at + c, count) * root;
      store(direct + c, d);
      store_first<S>(terms + right_ + c, d * input(at + c, count) * inverse, count);
    }
    for (i64 c = 0; c < problem_.channels; c += W) {
      const i64 count = problem_.channels - c;
      write(at + c, count, d_input(load(direct + c), input(at + c, count), window_sum(terms + c)));
    }
  }

  const LrnProblem& problem_;
  i64 left_, right_;
  S alpha_;
  Power<S> power_;
  S k_, slope_;
  int threads_;
};

}  // namespace fbp::FBP_ISA

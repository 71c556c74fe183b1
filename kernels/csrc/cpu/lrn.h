// Local response normalisation, one read and one write: y = x / s^beta with s = k + alpha / size *
// sum of x^2 over the channels c - size / 2 to c + (size - 1) / 2. The backward computes s again:
//
//   dx_c = dy_c s_c^-beta - 2 alpha beta / size * x_c * sum over windows j that hold c of dy_j x_j
//   s_j^(-beta - 1)

#pragma once

#include "memory.h"

namespace fbp::FBP_ISA {

inline Vec<float> square_root(Vec<float> x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(x);
#else
  for (int i = 0; i < kWidth<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
inline Vec<double> square_root(Vec<double> x) {
#if defined(__AVX512F__)
  return _mm512_sqrt_pd(x);
#elif defined(__AVX2__)
  return _mm256_sqrt_pd(x);
#elif defined(__SSE2__)
  return _mm_sqrt_pd(x);
#else
  for (int i = 0; i < kWidth<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

inline float power(float x, float exponent) { return __builtin_powf(x, exponent); }
inline double power(double x, double exponent) { return __builtin_pow(x, exponent); }

// ThreeQuarters: beta is 0.75, as nearly everywhere, and needs two square roots only.
template <class T, bool ThreeQuarters>
class Lrn {
 public:
  explicit Lrn(const LrnProblem& problem)
      : problem_(problem),
        left_(problem.size / 2),
        right_((problem.size - 1) / 2),
        alpha_(static_cast<S>(problem.alpha / static_cast<double>(problem.size))),
        beta_(static_cast<S>(problem.beta)),
        k_(static_cast<S>(problem.k)),
        slope_(
            static_cast<S>(2 * problem.alpha * problem.beta / static_cast<double>(problem.size))),
        threads_(threads_for(static_cast<double>(problem.images * problem.positions) *
                             static_cast<double>(problem.channels * (problem.size + 20)))) {}

  void forward() const {
    if (problem_.channels_last) {
      over_rows(1, [&](i64 at, S* scratch) { forward_row(at, scratch); });
    } else {
      over_chunks(1, [&](i64 at, i64 count, S* scratch) { forward_chunk(at, count, scratch); });
    }
  }

  void backward() const {
    if (problem_.channels_last) {
      over_rows(3, [&](i64 at, S* scratch) { backward_row(at, scratch); });
    } else {
      over_chunks(3, [&](i64 at, i64 count, S* scratch) { backward_chunk(at, count, scratch); });
    }
  }

 private:
  using S = typename AccumulateIn<T>::type;
  static constexpr i64 W = kWidth<S>;
  static constexpr i64 kChunk = 512;         // positions worked on at a time, through all channels
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

  // s^beta
  Vec<S> root(Vec<S> s) const {
    if constexpr (ThreeQuarters) {
      const Vec<S> half = square_root(s);
      return half * square_root(half);
    } else {
      for (int i = 0; i < W; ++i) s[i] = power(s[i], beta_);
      return s;
    }
  }

  // The gradient, zero where the ReLU cut.
  Vec<S> d_input(Vec<S> direct, Vec<S> x, Vec<S> terms) const {
    const Vec<S> g = direct - slope_ * x * terms;
    return problem_.relu ? (x <= 0 ? Vec<S>{} : g) : g;
  }

  // ---- channels apart: a chunk of positions, channel by channel, the last `size` channels in a
  // ring ----

  template <class F>
  void over_chunks(i64 rings, const F& work) const {
    const i64 chunks = ceil_div(problem_.positions, kChunk);
    const i64 width = smaller(kChunk, round_up(problem_.positions, W));
    const WorkerBuffers<S> scratch(threads_, rings * problem_.size * width);
    parallel(problem_.images * chunks, threads_, [&](int worker, i64 job) {
      const i64 position = job % chunks * kChunk;
      work(job / chunks * problem_.channels * problem_.positions + position,
           smaller(kChunk, problem_.positions - position), scratch.of(worker));
    });
  }

  i64 place(i64 channel, i64 width) const { return channel % problem_.size * width; }

  // Sum over the ring's channels first to last, those that exist, at position i.
  Vec<S> ring_sum(const S* ring, i64 first, i64 last, i64 width, i64 i) const {
    first = larger<i64>(first, 0);
    last = smaller(last, problem_.channels - 1);
    Vec<S> sum{};
    const S* const end = ring + problem_.size * width;
    const S* from = ring + place(first, width);
    for (i64 channel = first; channel <= last; ++channel) {
      sum += load(from + i);
      from += width;
      if (from == end) from = ring;
    }
    return sum;
  }

  void square_channel(i64 at, i64 channel, i64 count, i64 width, S* ring) const {
    S* const squares = ring + place(channel, width);
    for (i64 i = 0; i < count; i += W) {
      const Vec<S> x = input(at + channel * problem_.positions + i, count - i);
      store(squares + i, x * x);
    }
  }

  void forward_chunk(i64 at, i64 count, S* squares) const {
    const i64 width = round_up(count, W);
    for (i64 channel = 0; channel < problem_.channels + right_; ++channel) {
      if (channel < problem_.channels) square_channel(at, channel, count, width, squares);
      const i64 c = channel - right_;
      if (c < 0) continue;
      for (i64 i = 0; i < count; i += W) {
        const i64 e = at + c * problem_.positions + i;
        const Vec<S> s = scale(ring_sum(squares, c - left_, c + right_, width, i));
        write(e, count - i, input(e, count - i) / root(s));
      }
    }
  }

  void backward_chunk(i64 at, i64 count, S* squares) const {
    const i64 width = round_up(count, W);
    S* const direct = squares + problem_.size * width;  // dy s^-beta
    S* const terms = direct + problem_.size * width;    // dy x s^(-beta - 1)
    for (i64 channel = 0; channel < problem_.channels + right_ + left_; ++channel) {
      if (channel < problem_.channels) square_channel(at, channel, count, width, squares);
      const i64 j = channel - right_;
      if (j >= 0 && j < problem_.channels) {
        for (i64 i = 0; i < count; i += W) {
          const i64 e = at + j * problem_.positions + i;
          const Vec<S> s = scale(ring_sum(squares, j - left_, j + right_, width, i));
          const Vec<S> d = d_output(e, count - i) / root(s);
          store(direct + place(j, width) + i, d);
          store(terms + place(j, width) + i, d * input(e, count - i) / s);
        }
      }
      const i64 c = j - left_;
      if (c < 0) continue;
      for (i64 i = 0; i < count; i += W) {
        const i64 e = at + c * problem_.positions + i;
        write(e, count - i,
              d_input(load(direct + place(c, width) + i), input(e, count - i),
                      ring_sum(terms, c - right_, c + left_, width, i)));
      }
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
    Vec<S> sum{};
    for (i64 j = 0; j < problem_.size; ++j) sum += load(from + j);
    return sum;
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
      write(at + c, count, input(at + c, count) / root(scale(window_sum(squares + c))));
    }
  }

  void backward_row(i64 at, S* squares) const {
    S* const direct = squares + row_length();
    S* const terms = direct + row_length();  // behind `right_` zeros
    square_row(at, squares);
    for (i64 c = 0; c < problem_.channels; c += W) {
      const i64 count = problem_.channels - c;
      const Vec<S> s = scale(window_sum(squares + c));
      const Vec<S> d = d_output(at + c, count) / root(s);
      store(direct + c, d);
      store_first<S>(terms + right_ + c, d * input(at + c, count) / s, count);
    }
    for (i64 c = 0; c < problem_.channels; c += W) {
      const i64 count = problem_.channels - c;
      write(at + c, count, d_input(load(direct + c), input(at + c, count), window_sum(terms + c)));
    }
  }

  const LrnProblem& problem_;
  i64 left_, right_;
  S alpha_, beta_, k_, slope_;
  int threads_;
};

}  // namespace fbp::FBP_ISA

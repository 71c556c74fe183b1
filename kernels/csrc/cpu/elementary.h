// Elementary functions of vectors, exact to a rounding or two: exp, tanh, powers, square roots; and
// sums.

#pragma once

#include "simd.h"

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

template <class S>
inline Vec<S> absolute(Vec<S> x) {
  using Bits = typename Simd<S>::Bits;
  return reinterpret<Vec<S>>(reinterpret<Bits>(x) << 1 >> 1);
}

// |x| with the sign of y.
template <class S>
inline Vec<S> with_sign(Vec<S> x, Vec<S> y) {
  using Bits = typename Simd<S>::Bits;
  const Bits magnitude = reinterpret<Bits>(y) << 1 >> 1;
  return reinterpret<Vec<S>>(reinterpret<Bits>(x) | (reinterpret<Bits>(y) ^ magnitude));
}

// The format of a type, and how many terms of a series it takes.
template <class S>
struct Format;
template <>
struct Format<float> {
  static constexpr int mantissa = 23, exp_terms = 7, log_terms = 5;
  static constexpr u32 bias = 127, root_of_half = 0x3f3504f3;
  // Added to a small number, leaves it rounded to an integer in the last bits.
  static constexpr float rounder = 0x1.8p23f, smallest = 0x1p-126f, infinity = __builtin_inff();
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float exp_least = -87.0f, tanh_most = 20.0f, scale_most = 252.0f;
  static constexpr float near_above[] = {315, 14}, near_below[] = {945, 420, 15};
};
template <>
struct Format<double> {
  static constexpr int mantissa = 52, exp_terms = 13, log_terms = 11;
  static constexpr u64 bias = 1023, root_of_half = 0x3fe6a09e667f3bcd;
  static constexpr double rounder = 0x1.8p52, smallest = 0x1p-1022, infinity = __builtin_inf();
  static constexpr double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45;
  static constexpr double exp_least = -708.0, tanh_most = 40.0, scale_most = 2044.0;
  static constexpr double near_above[] = {675675, 45045, 594, 1};
  static constexpr double near_below[] = {2027025, 945945, 51975, 630, 1};
};

// e^r - 1 for |r| up to ln(2) / 2.
template <class S>
inline Vec<S> expm1_series(Vec<S> r) {
  constexpr int terms = Format<S>::exp_terms;
  double factorial = 1;
  for (int i = 2; i <= terms; ++i) factorial *= i;
  Vec<S> sum = splat(static_cast<S>(1 / factorial));
#pragma GCC unroll 16
  for (int i = terms; i > 2; --i) {
    factorial /= i;
    sum = sum * r + static_cast<S>(1 / factorial);
  }
  return r + r * r * sum;
}

// 2^n for an integer n that is the last bits of a number to which Format::rounder was added.
template <class S>
inline Vec<S> power_of_two(Vec<S> rounded) {
  using F = Format<S>;
  using Bits = typename Simd<S>::Bits;
  return reinterpret<Vec<S>>((reinterpret<Bits>(rounded) + F::bias) << F::mantissa);
}

// e^x = power (1 + rest), power a power of two, where that is a normal number.
template <class S>
struct Exponential {
  Vec<S> power, rest;

  explicit Exponential(Vec<S> x) {
    using F = Format<S>;
    constexpr S log2_e = static_cast<S>(1.4426950408889634);
    const Vec<S> rounded = x * log2_e + F::rounder;
    const Vec<S> n = rounded - F::rounder;
    power = power_of_two<S>(rounded);
    rest = expm1_series<S>((x - n * F::ln2_high) - n * F::ln2_low);
  }
};

// e^x for x up to 0.
template <class S>
inline Vec<S> exp_of_negative(Vec<S> x) {
  constexpr S least = Format<S>::exp_least;
  const Exponential<S> e(x < least ? splat(least) : x);
  return x < least ? Vec<S>{} : e.power + e.power * e.rest;
}

// c[0] + c[1] x + ...
template <class S, int N>
inline Vec<S> polynomial(const S (&c)[N], Vec<S> x) {
  Vec<S> sum = splat(c[N - 1]);
#pragma GCC unroll 8
  for (int i = N - 2; i >= 0; --i) sum = sum * x + c[i];
  return sum;
}

// Either way the answer is a number less a small one, so that what rounds the small one hardly
// counts: 1 less 2 / (e^(2 |x|) + 1) or, near 0, x less x - tanh(x), that by Lambert's continued
// fraction.
template <class S>
inline Vec<S> hyperbolic_tangent(Vec<S> x) {
  constexpr S most = Format<S>::tanh_most;
  const Vec<S> size = absolute<S>(x), square = size * size, twice = 2 * size;
  const Exponential<S> e(twice > most ? splat(most) : twice);  // NaN stays
  const auto near = size < S{0.5625};
  const Vec<S> above =
      near ? size * square * polynomial<S>(Format<S>::near_above, square) : splat(S{2});
  const Vec<S> below =
      near ? polynomial<S>(Format<S>::near_below, square) : e.power * e.rest + (e.power + 1);
  return with_sign<S>((near ? size : splat(S{1})) - above / below, x);
}

// x^exponent for x > 0. With x = 2^e m, m about 1, it is 2^(exponent e) 2^(exponent log2 m); the
// first exponent is taken apart so that nothing of it is lost.
template <class S>
class Power {
 public:
  explicit Power(S exponent) : exponent_(exponent), high_(shortened(exponent)) {}

  Vec<S> operator()(Vec<S> x) const {
    using F = Format<S>;
    using Bits = typename Simd<S>::Bits;
    using Int = typename Simd<S>::Int;
    constexpr S subnormals = static_cast<S>(u64{1} << F::mantissa);
    const auto tiny = x < F::smallest;
    const Bits bits = reinterpret<Bits>(tiny ? x * subnormals : x);
    const Int n = reinterpret<Int>(bits - F::root_of_half) >> F::mantissa;
    const Vec<S> m = reinterpret<Vec<S>>(bits - (reinterpret<Bits>(n) << F::mantissa));
    const Vec<S> whole = __builtin_convertvector(n, Vec<S>);
    const Vec<S> e = tiny ? whole - static_cast<S>(F::mantissa) : whole;

    const Vec<S> z = (m - 1) / (m + 1), square = z * z;
    Vec<S> series = splat(S{1} / (2 * F::log_terms - 1));
#pragma GCC unroll 16
    for (int i = F::log_terms - 1; i > 0; --i) series = series * square + S{1} / (2 * i - 1);
    const Vec<S> log2 = z * series * static_cast<S>(2 * 1.4426950408889634);

    const Vec<S> first = rounded(exponent_ * e);
    const Vec<S> rest = ((high_ * e - first) + (exponent_ - high_) * e) + exponent_ * log2;
    const Vec<S> second = rounded(rest);
    const Vec<S> fraction = expm1_series<S>((rest - second) * static_cast<S>(0.6931471805599453));
    const Vec<S> result = scaled(1 + fraction, first + second);
    const S limit = exponent_ < 0 ? S{0} : exponent_ > 0 ? F::infinity : S{1};
    return x == F::infinity ? splat(limit) : x == x ? result : x;
  }

 private:
  static Vec<S> rounded(Vec<S> x) { return (x + Format<S>::rounder) - Format<S>::rounder; }

  // So short that its product with the exponent of a number is exact.
  static S shortened(S x) {
    constexpr int bits = sizeof(S) == 4 ? 12 : 24;
    const S shifted = x * static_cast<S>((1 << bits) + 1);
    return shifted - (shifted - x);
  }

  // x 2^n, in two steps, for 2^n may be no number where the result is.
  static Vec<S> scaled(Vec<S> x, Vec<S> n) {
    using F = Format<S>;
    n = n > F::scale_most ? splat(F::scale_most) : n < -F::scale_most ? splat(-F::scale_most) : n;
    const Vec<S> half = rounded(n * S{0.5});
    return x * power_of_two<S>(half + F::rounder) * power_of_two<S>((n - half) + F::rounder);
  }

  S exponent_, high_;
};

// The sum of the lanes.
template <class S>
inline S total(Vec<S> x) {
  constexpr int W = kWidth<S>;
  S lanes[W];
  store(lanes, x);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// The sum of term(i) for i = from, from + W, ... below `to`, each a vector; in a balanced tree of
// short runs: the rounding error grows with the run and hardly with the length.
template <class S, class F>
inline Vec<S> pairwise_sum(i64 from, i64 to, const F& term) {
  constexpr i64 W = kWidth<S>, run = 16 * W;
  if (to - from > run) {
    const i64 middle = from + ceil_div(ceil_div(to - from, run), 2) * run;
    return pairwise_sum<S>(from, middle, term) + pairwise_sum<S>(middle, to, term);
  }
  Vec<S> sum[4] = {};
  i64 i = from;
  for (; i + 3 * W < to; i += 4 * W)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[j] += term(i + j * W);
  for (int j = 0; i < to; i += W, ++j) sum[j] += term(i);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace fbp::FBP_ISA

// Vectors of one instruction set, by the vector extensions of GCC and Clang, and how elements are
// loaded into them.
//
// Everything here and in the files that include it lives in a namespace of the instruction set's
// name: these files are compiled once per set, and an inline function shared between the builds
// would let the linker keep the copy that an older processor cannot run.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../problem.h"

#if !defined(FBP_ISA)
#error "FBP_ISA names the instruction set: portable, avx2, avx512 or avx512_bf16"
#endif

namespace fbp::FBP_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

// Storage types of half precision; arithmetic is in float.
struct bfloat16 {
  u16 bits;
};
struct float16 {
  u16 bits;
};

// The type to accumulate in.
template <class T>
struct AccumulateIn {
  using type = float;
};
template <>
struct AccumulateIn<double> {
  using type = double;
};

template <class T, int W>
struct VectorOf {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};

// Vectors of S (float or double), and integers of the same width.
template <class S>
struct Simd;
template <>
struct Simd<float> {
  static constexpr int width = kVectorBytes / 4;
  using Vec = VectorOf<float, width>::type;
  using Bits = VectorOf<u32, width>::type;
  using Int = VectorOf<std::int32_t, width>::type;
};
template <>
struct Simd<double> {
  static constexpr int width = kVectorBytes / 8;
  using Vec = VectorOf<double, width>::type;
  using Bits = VectorOf<u64, width>::type;
  using Int = VectorOf<std::int64_t, width>::type;
};

template <class S>
using Vec = typename Simd<S>::Vec;
template <class S>
constexpr int kWidth = Simd<S>::width;

template <class A>
constexpr A smaller(A x, A y) {
  return x < y ? x : y;
}
template <class A>
constexpr A larger(A x, A y) {
  return x < y ? y : x;
}
constexpr i64 ceil_div(i64 x, i64 y) { return (x + y - 1) / y; }
constexpr i64 round_up(i64 x, i64 y) { return ceil_div(x, y) * y; }

template <class To, class From>
inline To reinterpret(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &x, sizeof x);
  return result;
}

// ---- one element ----

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) { return reinterpret<float>(u32{x.bits} << 16); }
inline float widen(float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const u32 sign = u32{x.bits & 0x8000u} << 16, rest = x.bits & 0x7fffu;
  // Zero and subnormal are multiples of 2^-24; the exponent 31, infinity and NaN, becomes 255.
  const u32 small = reinterpret<u32>(static_cast<float>(static_cast<int>(rest)) * 0x1p-24f);
  const u32 normal = (rest << 13) + ((rest < 0x7c00 ? 112u : 224u) << 23);
  return reinterpret<float>(sign | (rest < 0x0400 ? small : normal));
#endif
}

// Rounds to nearest, ties to even.
template <class T, class S>
inline T narrow(S x) {
  if constexpr (sizeof(T) == sizeof(S)) {
    return x;
  } else {
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    const u32 sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if constexpr (__is_same(T, bfloat16)) {
      if (magnitude > 0x7f800000u) return {static_cast<u16>(bits >> 16 | 0x40u)};
      return {static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
    } else {
      if (magnitude > 0x7f800000u) return {static_cast<u16>(sign | 0x7e00u)};
      if (magnitude >= 0x477ff000u) return {static_cast<u16>(sign | 0x7c00u)};  // rounds past 65504
      if (magnitude <
          0x38800000u) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the low bits
        float shifted;
        __builtin_memcpy(&shifted, &magnitude, 4);
        shifted += 0.5f;
        u32 rounded;
        __builtin_memcpy(&rounded, &shifted, 4);
        return {static_cast<u16>(sign | (rounded - 0x3f000000u))};
      }
      const u32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
      return {static_cast<u16>(sign | (rounded - (112u << 23)) >> 13)};
    }
  }
}

// ---- vectors ----

template <class S>
inline Vec<S> splat(S x) {
  return x - Vec<S>{};
}

inline Vec<float> load(const float* from) {
  Vec<float> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
inline Vec<double> load(const double* from) {
  Vec<double> x;
  __builtin_memcpy(&x, from, sizeof x);
  return x;
}
inline Vec<float> load(const bfloat16* from) {
  VectorOf<u16, kWidth<float>>::type x;
  __builtin_memcpy(&x, from, sizeof x);
  return reinterpret<Vec<float>>(__builtin_convertvector(x, Simd<float>::Bits) << 16);
}
inline Vec<float> load(const float16* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__) && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Vec<float> x;
  for (int i = 0; i < kWidth<float>; ++i) x[i] = widen(from[i]);
  return x;
#endif
}

inline void store(float* to, Vec<float> x) { __builtin_memcpy(to, &x, sizeof x); }
inline void store(double* to, Vec<double> x) { __builtin_memcpy(to, &x, sizeof x); }
inline void store(bfloat16* to, Vec<float> x) {
  using Bits = Simd<float>::Bits;
  const Bits bits = reinterpret<Bits>(x);
  const Bits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Bits quiet = bits >> 16 | 0x40u;
  const Bits is_nan = reinterpret<Bits>((bits & 0x7fffffffu) > 0x7f800000u);
  const Bits result = (quiet & is_nan) | (rounded & ~is_nan);
  const auto half = __builtin_convertvector(result, VectorOf<u16, kWidth<float>>::type);
  __builtin_memcpy(to, &half, sizeof half);
}
inline void store(float16* to, Vec<float> x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__) && defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth<float>; ++i) to[i] = narrow<float16>(x[i]);
#endif
}

// The first `count` elements, the rest 0; touches no memory past them.
template <class T>
inline Vec<typename AccumulateIn<T>::type> load_first(const T* from, i64 count) {
  using S = typename AccumulateIn<T>::type;
  if (count >= kWidth<S>) return load(from);
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from);
  } else if constexpr (__is_same(T, double)) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), from);
  }
#endif
  S buffer[kWidth<S>] = {};
  for (i64 i = 0; i < count; ++i) buffer[i] = widen(from[i]);
  return load(buffer);
}

// Writes the first `count` elements and nothing past them.
template <class T, class S = typename AccumulateIn<T>::type>
inline void store_first(T* to, Vec<S> x, i64 count) {
  if (count >= kWidth<S>) return store(to, x);
#if defined(__AVX512F__)
  if constexpr (__is_same(T, float)) {
    return _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), x);
  } else if constexpr (__is_same(T, double)) {
    return _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1u), x);
  }
#endif
  S buffer[kWidth<S>];
  store(buffer, x);
  for (i64 i = 0; i < count; ++i) to[i] = narrow<T>(buffer[i]);
}

// The first `count` lanes of x, the rest 0 (even where x is NaN).
template <class S>
inline Vec<S> first_of(Vec<S> x, i64 count) {
  if (count >= kWidth<S>) return x;
  for (i64 lane = larger<i64>(count, 0); lane < kWidth<S>; ++lane) x[lane] = S{0};
  return x;
}

// x where the mask's bits are set, else 0 (even where x is NaN).
template <class S>
inline Vec<S> where(typename Simd<S>::Bits mask, Vec<S> x) {
  return reinterpret<Vec<S>>(reinterpret<typename Simd<S>::Bits>(x) & mask);
}

// x, or `bound` where it is below (above) that. NaN stays NaN, and a bound of NaN is none.
template <class V>
inline V at_least(V x, V bound) {
  return x < bound ? bound : x;
}
template <class V>
inline V at_most(V x, V bound) {
  return x > bound ? bound : x;
}
#if defined(__AVX512F__)
// In one instruction, which takes the second of two that compare with nothing or are both zero.
// (The mask is for GCC, whose header draws a warning about the functions without.)
inline Vec<float> at_least(Vec<float> x, Vec<float> bound) {
  return _mm512_maskz_max_ps(0xffff, bound, x);
}
inline Vec<float> at_most(Vec<float> x, Vec<float> bound) {
  return _mm512_maskz_min_ps(0xffff, bound, x);
}
#endif

// ---- shuffles and transposition ----

template <int... I>
struct Indices {};
template <int W>
struct FirstIndices {
  using type = typename FirstIndices<W / 2>::type;
};
template <>
struct FirstIndices<2> {
  using type = Indices<0, 1>;
};
template <>
struct FirstIndices<4> {
  using type = Indices<0, 1, 2, 3>;
};
template <>
struct FirstIndices<8> {
  using type = Indices<0, 1, 2, 3, 4, 5, 6, 7>;
};
template <>
struct FirstIndices<16> {
  using type = Indices<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
};

template <class S, int Start, int... I>
inline Vec<S> lanes_from(Vec<S> x, Vec<S> y, Indices<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, (Start + I)...);
#else
  return __builtin_shuffle(x, y, typename Simd<S>::Int{(Start + I)...});
#endif
}

// W lanes of x and then y, from lane `Start` of x on.
template <class S, int Start>
inline Vec<S> lanes_from(Vec<S> x, Vec<S> y) {
  return lanes_from<S, Start>(x, y, typename FirstIndices<kWidth<S>>::type{});
}

// x0 y0 x1 y1 ... of the lower (upper) halves of x and y.
template <class S, bool Upper, int... I>
inline Vec<S> interleave(Vec<S> x, Vec<S> y, Indices<I...>) {
  constexpr int W = kWidth<S>, start = Upper ? W / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(x, y, (start + I / 2 + (I % 2) * W)...);
#else
  return __builtin_shuffle(x, y, typename Simd<S>::Int{(start + I / 2 + (I % 2) * W)...});
#endif
}

// Transposes W vectors of W elements: W/2-apart rows are interleaved log2(W) times.
template <class S>
inline void transpose(Vec<S> (&rows)[kWidth<S>]) {
  constexpr int W = kWidth<S>;
  using I = typename FirstIndices<W>::type;
#pragma GCC unroll 4
  for (int step = 1; step < W; step *= 2) {
    Vec<S> next[W];
#pragma GCC unroll 16
    for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave<S, false>(rows[i], rows[i + W / 2], I{});
      next[2 * i + 1] = interleave<S, true>(rows[i], rows[i + W / 2], I{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) rows[i] = next[i];
  }
}

}  // namespace fbp::FBP_ISA

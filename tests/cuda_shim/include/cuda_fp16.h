// float16 on the host: 16 bits and conversions that round to nearest even.

#pragma once

#include "cuda_runtime.h"

namespace shim {

inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
  const std::uint32_t rest = h & 0x7fff;
  if (rest >= 0x7c00) return bits<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // The exponent is off by 112; a product with 2^112 puts it right, for subnormal numbers too.
  return bits<float>(sign | bits<std::uint32_t>(bits<float>(rest << 13) * 0x1p112f));
}

inline std::uint16_t float_to_half(float x) {
  const auto all = bits<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>(all >> 16 & 0x8000);
  const std::uint32_t rest = all & 0x7fffffff;
  if (rest > 0x7f800000) return 0x7fff;  // NaN, as the instruction makes it
  if (rest >= 0x477ff000) return sign | 0x7c00;
  if (rest < 0x38800000) {
    // Subnormal: adding 0.5 leaves the digits that a float16 has, rounded.
    return sign |
           static_cast<std::uint16_t>(bits<std::uint32_t>(bits<float>(rest) + 0.5f) - 0x3f000000);
  }
  const std::uint32_t even = rest >> 13 & 1;
  return sign | static_cast<std::uint16_t>((rest - 0x38000000 + 0xfff + even) >> 13);
}

}  // namespace shim

struct __half {
  std::uint16_t bits;

  __half() = default;
  __half(float x) : bits(shim::float_to_half(x)) {}
  operator float() const { return shim::half_to_float(bits); }
};

struct alignas(4) __half2 {
  __half x, y;
};

using half = __half;
using half2 = __half2;

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 x) { return {x.x, x.y}; }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float __low2float(__half2 x) { return x.x; }
inline float __high2float(__half2 x) { return x.y; }
inline __half __low2half(__half2 x) { return x.x; }
inline __half __high2half(__half2 x) { return x.y; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short x) {
  __half result;
  result.bits = x;
  return result;
}

// bfloat16 on the host: 16 bits and conversions that round to nearest even.

#pragma once

#include "cuda_runtime.h"

namespace shim {

inline float bfloat16_to_float(std::uint16_t x) {
  return bits<float>(static_cast<std::uint32_t>(x) << 16);
}

inline std::uint16_t float_to_bfloat16(float x) {
  const auto all = bits<std::uint32_t>(x);
  if ((all & 0x7fffffff) > 0x7f800000) return 0x7fff;  // NaN, as the instruction makes it
  return static_cast<std::uint16_t>((all + 0x7fff + (all >> 16 & 1)) >> 16);
}

}  // namespace shim

struct __nv_bfloat16 {
  std::uint16_t bits;

  __nv_bfloat16() = default;
  __nv_bfloat16(float x) : bits(shim::float_to_bfloat16(x)) {}
  operator float() const { return shim::bfloat16_to_float(bits); }
};

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) { return {x.x, x.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {x.x, x.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float __low2float(__nv_bfloat162 x) { return x.x; }
inline float __high2float(__nv_bfloat162 x) { return x.y; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) {
  __nv_bfloat16 result;
  result.bits = x;
  return result;
}

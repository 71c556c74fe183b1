// How wgmma is told where in shared memory an operand lies, in the layout that bulk copies with a
// swizzle of 128 bytes leave: lines of 128 bytes, in patterns of eight lines, within which 16 bytes
// number c of line r are at number c ^ r % 8. With a swizzle of 64 bytes lines are half as long,
// and c is at c ^ r / 2 % 4.

#pragma once

#include <cstdint>

#include "cuda/common.h"

namespace fbp::cuda {

constexpr int kLineBytes = 128, kPatternLines = 8, kPatternBytes = kPatternLines * kLineBytes;

class MatrixDescriptor {
  static constexpr int kUnit = 16;  // bytes

 public:
  // Of lines along the depth, patterns of which follow one another; or of lines across it, one for
  // each number of the depth, where the numbers beside a line's are `beside` bytes on.
  template <Along kAlong, int kLine = kLineBytes>
  __device__ static MatrixDescriptor of(const void* lines, int beside) {
    static_assert(kLine == kLineBytes || kLine == kLineBytes / 2, "a swizzle of whole lines");
    return {lines, kAlong == Along::depth ? 0 : beside, kPatternLines * kLine,
            kLine == kLineBytes ? kSwizzle128 : kSwizzle64};
  }

  // That of what begins so many bytes later. The address alone changes, and never carries: shared
  // memory ends before its 18 bits do.
  __device__ std::uint64_t at(int bytes) const {
    return bits_ + static_cast<unsigned>(bytes / kUnit);
  }

 private:
  static constexpr std::uint64_t kSwizzle128 = 1, kSwizzle64 = 2;

  __device__ MatrixDescriptor(const void* begin, int leading, int pattern, std::uint64_t swizzle) {
    // In a cluster the bits above tell whose memory it is.
    constexpr std::uint32_t kAddress = (1u << 18) - 1;
    bits_ = (shared_address(begin) & kAddress) / kUnit |
            static_cast<std::uint64_t>(leading / kUnit) << 16 |
            static_cast<std::uint64_t>(pattern / kUnit) << 32 | swizzle << 62;
  }

  std::uint64_t bits_;
};

}  // namespace fbp::cuda

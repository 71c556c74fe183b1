// How many terms one accumulator of a float32 product takes before it is added to the others: the
// error of one running sum grows with its length. Tests put a header of the same path before this
// one.

#pragma once

namespace fbp::cuda {

constexpr int kTerms = 64;

}  // namespace fbp::cuda

// The same number, as tests set it.

#pragma once

namespace fbp::cuda {

inline int kTerms = 64;

}  // namespace fbp::cuda

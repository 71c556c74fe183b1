// The bilinear backward of small batches on Hopper, see bilinear_backward_small.cu.

#pragma once

#include "../problem.h"
#include "cuda/launch.h"

namespace fbp::cuda {

// Whether it serves a problem on a device; the rule is in docs/kernels/cuda.md.
bool small_serves(const BackwardProblem& problem, const DeviceLimits& device);

void bilinear_backward_small(const BackwardProblem& problem, const Context& context);

}  // namespace fbp::cuda

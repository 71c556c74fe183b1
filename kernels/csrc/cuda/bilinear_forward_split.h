// The bilinear forward of small batches on Hopper, see bilinear_forward_split.cu.

#pragma once

#include "../problem.h"
#include "cuda/launch.h"

namespace fbp::cuda {

// Whether it serves a problem on a device; the rule is in docs/kernels/cuda.md.
bool split_serves(const ForwardProblem& problem, const DeviceLimits& device);

void bilinear_forward_split(const ForwardProblem& problem, const Context& context);

}  // namespace fbp::cuda

// The bilinear forward on Hopper, see bilinear_forward_wgmma.cu.

#pragma once

#include "../problem.h"
#include "cuda/launch.h"

namespace fbp::cuda {

// Whether it serves a problem on a device, where float32 may, or may not, be multiplied as TF32;
// the rule is in docs/kernels/cuda.md.
bool wgmma_serves(const ForwardProblem& problem, const DeviceLimits& device, bool tf32);

void bilinear_forward_wgmma(const ForwardProblem& problem, const Context& context);

}  // namespace fbp::cuda

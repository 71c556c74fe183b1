// The bilinear backward on Hopper, see bilinear_backward_wgmma.cu.

#pragma once

#include "bilinear_gradients.h"

namespace fbp::cuda {

// Whether it serves a problem on a device; the rule is in docs/kernels/cuda.md.
bool wgmma_serves(const BackwardProblem& problem, const DeviceLimits& device, bool tf32);

// The problem with projections in scratch memory, which may be written to.
BackwardProblem project_by_wgmma(const BackwardProblem& problem, const Context& context);

// All gradients, from those of the projections, which of float32 are turned round.
void multiply_by_wgmma(const BackwardProblem& problem, const ProjectionGradientsPlan& found,
                       const Context& context);

}  // namespace fbp::cuda

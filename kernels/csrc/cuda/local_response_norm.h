// Local response normalisation on a GPU: one launch forward, one backward.

#pragma once

#include "../problem.h"

namespace fbp::cuda {

void lrn_forward(const LrnProblem& problem, const Context& context);
void lrn_backward(const LrnProblem& problem, const Context& context);

}  // namespace fbp::cuda

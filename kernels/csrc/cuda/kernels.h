// The kernels for CUDA devices, in the form in which the binding takes those of any device.

#pragma once

#include "../problem.h"

namespace fbp::cuda {

void bilinear_forward(const ForwardProblem& problem, const Context& context);
void bilinear_backward(const BackwardProblem& problem, const Context& context);
void lrn_forward(const LrnProblem& problem, const Context& context);
void lrn_backward(const LrnProblem& problem, const Context& context);
void attention_pool_forward(const AttentionPoolProblem& problem, const Context& context);
void attention_pool_backward(const AttentionPoolProblem& problem, const Context& context);
void batch_norm_forward(const BatchNormProblem& problem, const Context& context);
void batch_norm_backward(const BatchNormProblem& problem, const Context& context);
void power_normalize_forward(const PowerNormalizeProblem& problem, const Context& context);
void power_normalize_backward(const PowerNormalizeProblem& problem, const Context& context);

}  // namespace fbp::cuda

namespace fbp {

Kernels cuda_kernels();

}  // namespace fbp

// All kernels of one instruction set; compiled once for each, with FBP_ISA set to its name.

#include "attention_pool.h"
#include "backward.h"
#include "batch_norm.h"
#include "convolution.h"
#include "dropout.h"
#include "forward.h"
#include "lrn.h"
#include "power_normalize.h"

namespace fbp::FBP_ISA {

namespace {

// Calls f with a value of the storage type.
template <class F>
void with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float32:
      return f(float{});
    case Dtype::float64:
      return f(double{});
    case Dtype::bfloat16:
      return f(bfloat16{});
    case Dtype::float16:
      return f(float16{});
  }
}

template <class F>
void with_lrn(const LrnProblem& problem, const F& f) {
  with_type(problem.dtype, [&](auto type) {
    if (problem.beta == 0.75) {
      f(Lrn<decltype(type), true>(problem));
    } else {
      f(Lrn<decltype(type), false>(problem));
    }
  });
}

void bilinear_forward(const ForwardProblem& problem, const Context&) {
  with_type(problem.dtype, [&](auto type) { Forward<decltype(type)>(problem).run(); });
}

void bilinear_backward(const BackwardProblem& problem, const Context&) {
  with_type(problem.dtype, [&](auto type) { Backward<decltype(type)>(problem).run(); });
}

void lrn_forward(const LrnProblem& problem, const Context&) {
  with_lrn(problem, [](const auto& lrn) { lrn.forward(); });
}

void lrn_backward(const LrnProblem& problem, const Context&) {
  with_lrn(problem, [](const auto& lrn) { lrn.backward(); });
}

template <class F>
void with_batch_norm(const BatchNormProblem& problem, const F& f) {
  with_type(problem.dtype, [&](auto type) {
    if (problem.relu) {
      f(BatchNorm<decltype(type), true>(problem));
    } else {
      f(BatchNorm<decltype(type), false>(problem));
    }
  });
}

void batch_norm_forward(const BatchNormProblem& problem, const Context&) {
  with_batch_norm(problem, [](const auto& norm) { norm.forward(); });
}

void batch_norm_backward(const BatchNormProblem& problem, const Context&) {
  with_batch_norm(problem, [](const auto& norm) { norm.backward(); });
}

void attention_pool_forward(const AttentionPoolProblem& problem, const Context&) {
  with_type(problem.dtype, [&](auto type) { AttentionPool<decltype(type)>(problem).forward(); });
}

void attention_pool_backward(const AttentionPoolProblem& problem, const Context&) {
  with_type(problem.dtype, [&](auto type) { AttentionPool<decltype(type)>(problem).backward(); });
}

void power_normalize_forward(const PowerNormalizeProblem& problem, const Context&) {
  with_type(problem.dtype, [&](auto type) { PowerNormalize<decltype(type)>(problem).forward(); });
}

void power_normalize_backward(const PowerNormalizeProblem& problem, const Context&) {
  with_type(problem.dtype, [&](auto type) { PowerNormalize<decltype(type)>(problem).backward(); });
}

void dropout(const DropoutProblem& problem, const Context&) {
  with_type(problem.dtype, [&](auto type) { DropoutOf<decltype(type)>(problem).run(); });
}

void convolution_weights(const ConvolutionProblem& problem, const Context&) {
  with_type(problem.dtype, [&](auto type) { ConvolutionWeights<decltype(type)>(problem).run(); });
}

}  // namespace

#define FBP_QUOTE(x) #x
#define FBP_NAME(x) FBP_QUOTE(x)

// A function, not an object: an object might be initialised by code of this instruction set on any
// processor.
Kernels kernels() {
  return {
      FBP_NAME(FBP_ISA),
      bilinear_forward,
      bilinear_backward,
      lrn_forward,
      lrn_backward,
      batch_norm_forward,
      batch_norm_backward,
      attention_pool_forward,
      attention_pool_backward,
      power_normalize_forward,
      power_normalize_backward,
      dropout,
      convolution_weights,
      /*any_gradient=*/true,
  };
}

}  // namespace fbp::FBP_ISA

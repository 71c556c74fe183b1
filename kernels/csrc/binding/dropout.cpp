// Dropout, on the CPU alone: the mask follows from PyTorch's generator of the CPU.

#include <tuple>

#include "tensors.h"

namespace fbp {

namespace {

constexpr i64 kStateSize = 632;  // of torch.Generator.get_state(), in eights of bytes

bool same_strides(const Tensor& x, const Tensor& y) { return x.strides().equals(y.strides()); }

// x in the layout of y.
Tensor laid_out_as(const Tensor& y, const Tensor& x) {
  if (same_strides(x, y)) return x;
  Tensor same = torch::stable::empty_like(y);
  return torch::stable::copy_(same, x);
}

DropoutProblem problem_of(const Tensor& x, const Tensor& state, double p, Tensor& out) {
  STD_TORCH_CHECK(p >= 0 && p <= 1, "p is ", p, ", expected 0 to 1");
  DropoutProblem problem;
  problem.dtype = dtype_of(x);
  problem.count = x.numel();
  problem.p = p;
  problem.x = x.const_data_ptr();
  problem.state = state.const_data_ptr<i64>();
  problem.out = out.mutable_data_ptr();
  return problem;
}

Tensor checked_state(const Tensor& state) {
  check_tensor("state", state, {kStateSize}, ScalarType::Long);
  Tensor result = made_contiguous(state);
  const auto left = static_cast<std::int32_t>(result.const_data_ptr<i64>()[1]);
  STD_TORCH_CHECK(left >= 1 && left <= 624, "state says that ", left,
                  " words are left, expected 1 to 624 as torch.Generator.get_state() has it");
  return result;
}

std::tuple<Tensor, Tensor> dropout_forward(Tensor x, Tensor state, double p) {
  STD_TORCH_CHECK(is_ours(x), "x must be on ", kDeviceName);
  state = checked_state(state);
  Tensor y = empty_as(x);
  Tensor after = torch::stable::clone(state);
  const Tensor dense = laid_out_as(y, x);
  DropoutProblem problem = problem_of(dense, state, p, y);
  problem.after = static_cast<i64*>(after.mutable_data_ptr());
  if (problem.count > 0) run(x, &Kernels::dropout, problem);
  return {y, after};
}

Tensor dropout_backward(Tensor dy, Tensor x, Tensor state, double p) {
  check_tensor("dy", dy, sizes_of(x), x.scalar_type());
  state = checked_state(state);
  Tensor dx = empty_as(x);
  const Tensor dense = laid_out_as(dx, dy);
  const DropoutProblem problem = problem_of(dense, state, p, dx);
  if (problem.count > 0) run(x, &Kernels::dropout, problem);
  return dx;
}

}  // namespace

FBP_IMPLEMENTATIONS(m) {
  m.impl("dropout_forward", TORCH_BOX(&dropout_forward));
  m.impl("dropout_backward", TORCH_BOX(&dropout_backward));
}

}  // namespace fbp

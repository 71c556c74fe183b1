// Batch normalisation that leaves padding out.

#include <array>
#include <tuple>

#include "tensors.h"

namespace fbp {

namespace {

// One value for each channel; 0 where there is nothing that a kernel could look at.
Tensor per_channel(const Tensor& x, ScalarType dtype) {
  const std::array<i64, 1> sizes{x.size(1)};
  return x.numel() == 0 ? torch::stable::new_zeros(x, {sizes.data(), 1}, dtype)
                        : torch::stable::new_empty(x, {sizes.data(), 1}, dtype);
}

// What sums are made in.
ScalarType wide(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

struct BatchNormCall {
  Tensor x, weight, bias;
  MaybeTensor lengths;
  BatchNormProblem problem;

  BatchNormCall(const Tensor& input, const Tensor& w, const Tensor& b, const MaybeTensor& valid,
                double eps, bool relu)
      : x(input), weight(w), bias(b), lengths(valid) {
    STD_TORCH_CHECK(is_ours(x), "x must be on ", kDeviceName);
    STD_TORCH_CHECK(x.dim() >= 3, "x has ", x.dim(), " dimensions, expected (N, C, ...)");
    const i64 last = x.dim() - 1;
    check_tensor("weight", weight, {x.size(1)}, wide(x));
    check_tensor("bias", bias, {x.size(1)}, wide(x));
    problem.dtype = dtype_of(x);
    Layout layout = layout_of(x);
    if (layout == Layout::neither) {
      x = torch::stable::contiguous(x);
      layout = Layout::apart;
    }
    problem.images = x.size(0);
    problem.channels = x.size(1);
    problem.row_length = 1;
    for (i64 dim = 2; dim <= last; ++dim) problem.row_length *= x.size(dim);
    // A single position is both; as channels together it is not a plane of one value.
    problem.channels_last = layout == Layout::together || problem.row_length == 1;
    if (lengths) {
      lengths = checked_lengths(*lengths, x.size(0), x.size(last));
      problem.lengths = lengths->const_data_ptr<i64>();
      if (x.size(last) > 0) problem.rows = problem.row_length / x.size(last);
      problem.row_length = x.size(last);
    }
    weight = torch::stable::contiguous(weight);
    bias = torch::stable::contiguous(bias);
    problem.eps = eps;
    problem.relu = relu;
    problem.x = x.const_data_ptr();
    problem.weight = weight.const_data_ptr();
    problem.bias = bias.const_data_ptr();
  }

  bool empty() const { return x.numel() == 0; }
};

std::tuple<Tensor, Tensor, Tensor> batch_norm_forward(Tensor x, Tensor weight, Tensor bias,
                                                      MaybeTensor lengths, double eps, bool relu) {
  BatchNormCall call(x, weight, bias, lengths, eps, relu);
  Tensor y = empty_as(call.x);
  Tensor mean = per_channel(x, ScalarType::Double);
  Tensor variance = per_channel(x, ScalarType::Double);
  call.problem.out = y.mutable_data_ptr();
  call.problem.mean = static_cast<double*>(mean.mutable_data_ptr());
  call.problem.variance = static_cast<double*>(variance.mutable_data_ptr());
  if (!call.empty()) run(call.x, &Kernels::batch_norm_forward, call.problem);
  return {y, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(Tensor dy, Tensor x, Tensor weight,
                                                       Tensor bias, MaybeTensor lengths,
                                                       Tensor mean, Tensor variance, double eps,
                                                       bool relu, i64 needs) {
  BatchNormCall call(x, weight, bias, lengths, eps, relu);
  check_tensor("dy", dy, sizes_of(x), x.scalar_type());
  check_tensor("mean", mean, {x.size(1)}, ScalarType::Double);
  check_tensor("variance", variance, {x.size(1)}, ScalarType::Double);
  Tensor dx = (needs & 1) != 0 ? empty_as(call.x) : nothing(dy);
  Tensor d_weight = per_channel(x, wide(x)), d_bias = per_channel(x, wide(x));
  if (!call.empty()) {
    const Device device(call.x);
    const Kernels& kernels = device.kernels();
    give_gradient(call.problem, call.x, dy, kernels.any_gradient && (needs & 1) != 0);
    mean = torch::stable::contiguous(mean);
    variance = torch::stable::contiguous(variance);
    call.problem.out = (needs & 1) != 0 ? dx.mutable_data_ptr() : nullptr;
    call.problem.mean = const_cast<double*>(mean.const_data_ptr<double>());
    call.problem.variance = const_cast<double*>(variance.const_data_ptr<double>());
    call.problem.d_weight = d_weight.mutable_data_ptr();
    call.problem.d_bias = d_bias.mutable_data_ptr();
    kernels.batch_norm_backward(call.problem, device.context());
  }
  if ((needs & 2) == 0) d_weight = nothing(dy);
  if ((needs & 4) == 0) d_bias = nothing(dy);
  return {dx, d_weight, d_bias};
}

}  // namespace

FBP_IMPLEMENTATIONS(m) {
  m.impl("batch_norm_forward", TORCH_BOX(&batch_norm_forward));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
}

}  // namespace fbp

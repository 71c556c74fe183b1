// The gradient of a convolution's weights, on the CPU alone.

#include "tensors.h"

namespace fbp {

namespace {

// Whether the memory of x (N, C, H, W) is (N, H, W, C) without gaps.
bool is_channels_last(const Tensor& x) {
  i64 expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (x.size(dim) > 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

Tensor empty_channels_last(const Tensor& like) {
  const i64 sizes[4] = {like.size(0), like.size(1), like.size(2), like.size(3)};
  const i64 strides[4] = {sizes[1] * sizes[2] * sizes[3], 1, sizes[3] * sizes[1], sizes[1]};
  return empty_strided({sizes, 4}, strides, like);
}

Tensor channels_last(const Tensor& x) {
  if (is_channels_last(x)) return x;
  Tensor result = empty_channels_last(x);
  return torch::stable::copy_(result, x);
}

Tensor conv2d_weight_gradient(Tensor dy, Tensor x, Tensor weight, i64 stride_y, i64 stride_x,
                              i64 padding_y, i64 padding_x) {
  STD_TORCH_CHECK(is_ours(x), "x must be on ", kDeviceName);
  STD_TORCH_CHECK(x.dim() == 4, "x has ", x.dim(), " dimensions, expected (N, C, H, W)");
  STD_TORCH_CHECK(weight.dim() == 4, "weight has ", weight.dim(),
                  " dimensions, expected (O, C, kernel height, kernel width)");
  check_tensor("weight", weight, {weight.size(0), x.size(1), weight.size(2), weight.size(3)},
               x.scalar_type());
  STD_TORCH_CHECK(stride_y >= 1 && stride_x >= 1, "stride is (", stride_y, ", ", stride_x,
                  "), expected at least 1");
  STD_TORCH_CHECK(padding_y >= 0 && padding_x >= 0, "padding is (", padding_y, ", ", padding_x,
                  "), expected at least 0");
  ConvolutionProblem problem;
  problem.dtype = dtype_of(x);
  problem.images = x.size(0);
  problem.channels = x.size(1);
  problem.outputs = weight.size(0);
  const i64 stride[2] = {stride_y, stride_x}, padding[2] = {padding_y, padding_x};
  for (int i = 0; i < 2; ++i) {
    problem.input[i] = x.size(2 + i);
    problem.kernel[i] = weight.size(2 + i);
    problem.stride[i] = stride[i];
    problem.padding[i] = padding[i];
    const i64 room = problem.input[i] + 2 * padding[i] - problem.kernel[i];
    STD_TORCH_CHECK(room >= 0 && problem.kernel[i] >= 1, "x has ", problem.input[i],
                    " positions and padding ", padding[i], ", expected at least as many as the ",
                    problem.kernel[i], " of weight");
    problem.output[i] = room / stride[i] + 1;
  }
  check_tensor("dy", dy, {x.size(0), problem.outputs, problem.output[0], problem.output[1]},
               x.scalar_type());
  Tensor result = empty_as(weight);
  if (result.numel() == 0) return result;
  if (dy.numel() == 0) return torch::stable::zero_(result);
  Tensor dense_result = is_channels_last(result) ? result : empty_channels_last(weight);
  const Tensor dense_x = channels_last(x), dense_dy = channels_last(dy);
  problem.x = dense_x.const_data_ptr();
  problem.dy = dense_dy.const_data_ptr();
  problem.d_weight = dense_result.mutable_data_ptr();
  run(x, &Kernels::convolution_weights, problem);
  return is_channels_last(result) ? result : torch::stable::copy_(result, dense_result);
}

}  // namespace

FBP_IMPLEMENTATIONS(m) { m.impl("conv2d_weight_gradient", TORCH_BOX(&conv2d_weight_gradient)); }

}  // namespace fbp

// Local response normalisation over channels.

#include "tensors.h"

namespace fbp {

namespace {

struct LrnCall {
  Tensor x;
  Tensor out;
  LrnProblem problem;

  LrnCall(const Tensor& input, i64 size, double alpha, double beta, double k, bool relu)
      : x(input) {
    STD_TORCH_CHECK(is_ours(x), "x must be on ", kDeviceName);
    STD_TORCH_CHECK(x.dim() >= 3, "x has ", x.dim(), " dimensions, expected (N, C, ...)");
    STD_TORCH_CHECK(size >= 1, "size is ", size, ", expected at least 1");
    problem.dtype = dtype_of(x);
    Layout layout = layout_of(x);
    if (layout == Layout::neither) {
      x = torch::stable::contiguous(x);
      layout = Layout::apart;
    }
    problem.channels_last = layout == Layout::together;
    out = empty_as(x);
    problem.images = x.size(0);
    problem.channels = x.size(1);
    problem.positions = 1;
    for (i64 dim = 2; dim < x.dim(); ++dim) problem.positions *= x.size(dim);
    problem.size = size;
    problem.alpha = alpha;
    problem.beta = beta;
    problem.k = k;
    problem.relu = relu;
    problem.x = x.const_data_ptr();
    problem.out = out.mutable_data_ptr();
  }

  bool empty() const { return x.numel() == 0; }
};

Tensor lrn_forward(Tensor x, i64 size, double alpha, double beta, double k, bool relu) {
  const LrnCall call(x, size, alpha, beta, k, relu);
  if (!call.empty()) run(call.x, &Kernels::lrn_forward, call.problem);
  return call.out;
}

Tensor lrn_backward(Tensor dy, Tensor x, i64 size, double alpha, double beta, double k, bool relu) {
  LrnCall call(x, size, alpha, beta, k, relu);
  check_tensor("dy", dy, sizes_of(x), x.scalar_type());
  if (call.empty()) return call.out;
  const Device device(call.x);
  const Kernels& kernels = device.kernels();
  give_gradient(call.problem, call.x, dy, kernels.any_gradient);
  kernels.lrn_backward(call.problem, device.context());
  return call.out;
}

}  // namespace

FBP_IMPLEMENTATIONS(m) {
  m.impl("lrn_forward", TORCH_BOX(&lrn_forward));
  m.impl("lrn_backward", TORCH_BOX(&lrn_backward));
}

}  // namespace fbp

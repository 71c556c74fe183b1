// Signed square roots and normalisation of rows.

#include "tensors.h"

namespace fbp {

namespace {

// x as rows along its last dimension, copied where that is no matrix of constant strides.
struct Matrix {
  Tensor tensor;
  View view;

  explicit Matrix(const Tensor& x) : tensor(x) {
    const i64 last = x.dim() - 1;
    if (x.dim() > 2) tensor = made_contiguous(x);
    view.data = const_cast<void*>(tensor.const_data_ptr());
    view.stride[0] = x.dim() > 2 ? x.size(last) : x.dim() == 2 ? x.stride(0) : 0;
    view.stride[1] = tensor.stride(last);
  }
};

PowerNormalizeProblem problem_of(const Tensor& z, const Matrix& rows, Tensor& out, double eps) {
  PowerNormalizeProblem problem;
  problem.dtype = dtype_of(z);
  problem.columns = z.size(z.dim() - 1);
  problem.rows = problem.columns == 0 ? 0 : z.numel() / problem.columns;
  problem.eps = eps;
  problem.z = rows.view;
  problem.out = out.mutable_data_ptr();
  return problem;
}

void check(const Tensor& z) {
  STD_TORCH_CHECK(is_ours(z), "z must be on ", kDeviceName);
  STD_TORCH_CHECK(z.dim() >= 1, "z is a scalar, expected at least one dimension");
}

Tensor power_normalize_forward(Tensor z, double eps) {
  check(z);
  Tensor y = empty(z.sizes(), z);
  if (z.numel() == 0) return y;
  const Matrix rows(z);
  run(z, &Kernels::power_normalize_forward, problem_of(z, rows, y, eps));
  return y;
}

Tensor power_normalize_backward(Tensor dy, Tensor z, double eps) {
  check(z);
  check_tensor("dy", dy, z.sizes(), z.scalar_type());
  Tensor dz = empty(z.sizes(), z);
  if (z.numel() == 0) return dz;
  const Matrix rows(z), slopes(dy);
  PowerNormalizeProblem problem = problem_of(z, rows, dz, eps);
  problem.dy = slopes.view;
  run(z, &Kernels::power_normalize_backward, problem);
  return dz;
}

}  // namespace

FBP_IMPLEMENTATIONS(m) {
  m.impl("power_normalize_forward", TORCH_BOX(&power_normalize_forward));
  m.impl("power_normalize_backward", TORCH_BOX(&power_normalize_backward));
}

}  // namespace fbp

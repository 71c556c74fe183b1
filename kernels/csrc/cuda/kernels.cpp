#include "cuda/kernels.h"

namespace fbp {

Kernels cuda_kernels() {
  Kernels kernels{};
  kernels.name = "cuda";
  kernels.bilinear_forward = cuda::bilinear_forward;
  kernels.bilinear_backward = cuda::bilinear_backward;
  kernels.lrn_forward = cuda::lrn_forward;
  kernels.lrn_backward = cuda::lrn_backward;
  kernels.attention_pool_forward = cuda::attention_pool_forward;
  kernels.attention_pool_backward = cuda::attention_pool_backward;
  kernels.batch_norm_forward = cuda::batch_norm_forward;
  kernels.batch_norm_backward = cuda::batch_norm_backward;
  kernels.power_normalize_forward = cuda::power_normalize_forward;
  kernels.power_normalize_backward = cuda::power_normalize_backward;
  return kernels;
}

}  // namespace fbp

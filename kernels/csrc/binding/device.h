// The device that this library's kernels run on. Every operator's file is written once and built
// once for each device: FBP_LIBRARY is the library of operators that it implements, FBP_KEY the
// dispatch key, and one of cpu.cpp and cuda.cpp defines what is declared here.

#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "../problem.h"

namespace fbp {

using torch::stable::Tensor;

// Whether a tensor's memory is what these kernels take.
bool is_ours(const Tensor& x);

// What such tensors are called in an error.
extern const char* const kDeviceName;

// The kernels, and what they need of the device during one call: lives until they are launched.
class Device {
 public:
  explicit Device(const Tensor& like);
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Kernels& kernels() const { return kernels_; }
  const Context& context() const { return context_; }

 private:
  Kernels kernels_;
  Context context_;
  Tensor like_;
  std::vector<Tensor> memory_;
  // Where launches go to the current device, that of the tensors is made it.
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

}  // namespace fbp

#define FBP_IMPLEMENTATIONS(m) STABLE_TORCH_LIBRARY_IMPL(FBP_LIBRARY, FBP_KEY, m)

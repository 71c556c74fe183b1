// The shim as the device: tensors of the CPU, kernels of CUDA.

#include "binding/device.h"

#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "cuda/kernels.h"
#include "shim.h"

namespace fbp {

bool is_ours(const Tensor& x) { return x.is_cpu(); }

const char* const kDeviceName = "the CPU";

Device::Device(const Tensor& like) : kernels_(cuda_kernels()), like_(like) {
  context_.tf32 = shim::settings().tf32;
  context_.owner = this;
  context_.allocate = [](void* owner, i64 bytes) {
    auto& device = *static_cast<Device*>(owner);
    constexpr i64 kAligned = 256;
    const i64 size = (bytes + kAligned - 1) / kAligned * kAligned;
    device.memory_.push_back(
        torch::stable::new_empty(device.like_, {&size, 1}, torch::headeronly::ScalarType::Byte));
    void* data = device.memory_.back().mutable_data_ptr();
    std::memset(data, 0xff, static_cast<std::size_t>(size));  // NaN
    return data;
  };
}

}  // namespace fbp

// A GPU as the device: its current stream, and scratch memory from torch's allocator.

#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "../cuda/kernels.h"
#include "device.h"
#include "older_systems.h"

namespace fbp {

namespace {

// The stable ABI has no name for CUDA's own stream before torch 2.13, but the C interface beneath
// it has, in the library that only a torch with CUDA brings. That is loaded wherever there is a
// tensor on a GPU; this library must also load where it is not there.
using CurrentStream = AOTITorchError (*)(std::int32_t device, void** stream);

CurrentStream current_stream() {
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const found =
      library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
  STD_TORCH_CHECK(found != nullptr, "this PyTorch does not say what its current CUDA stream is");
  return reinterpret_cast<CurrentStream>(found);
}

// torch's setting, which Python hands on: the stable ABI does not tell it.
std::atomic<bool> tf32{false};

}  // namespace

void allow_tf32(bool allowed) { tf32 = allowed; }

bool is_ours(const Tensor& x) { return x.is_cuda(); }

const char* const kDeviceName = "a GPU";

Device::Device(const Tensor& like) : kernels_(cuda_kernels()), like_(like) {
  static const CurrentStream stream = current_stream();
  const std::int32_t index = like.get_device_index();
  guard_.emplace(index);
  TORCH_ERROR_CODE_CHECK(stream(index, &context_.stream));
  context_.tf32 = tf32;
  context_.owner = this;
  context_.allocate = [](void* owner, i64 bytes) {
    auto& device = *static_cast<Device*>(owner);
    // Back with torch when the call returns: its allocator hands memory on in stream order.
    device.memory_.push_back(
        torch::stable::new_empty(device.like_, {&bytes, 1}, torch::headeronly::ScalarType::Byte));
    return device.memory_.back().mutable_data_ptr();
  };
}

}  // namespace fbp

STABLE_TORCH_LIBRARY_FRAGMENT(FBP_LIBRARY, m) { m.def("allow_tf32(bool allowed) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(FBP_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("allow_tf32", TORCH_BOX(&fbp::allow_tf32));
}

// The processor as the device, and which build of the kernels it runs.

#include <string>

#include "../isa.h"
#include "device.h"

namespace fbp {

bool is_ours(const Tensor& x) { return x.is_cpu(); }

const char* const kDeviceName = "the CPU";

Device::Device(const Tensor& like) : kernels_(selected_kernels()), like_(like) {}

}  // namespace fbp

namespace {

std::string cpu_isa() { return fbp::selected_kernels().name; }

std::string cpu_isas() { return fbp::runnable_isas(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(FBP_LIBRARY, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(FBP_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&cpu_isas));
}

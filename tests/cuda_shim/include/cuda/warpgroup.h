// How the warpgroups of a block divide its registers, by the shim.

#pragma once

#include <cuda_runtime.h>

#include "../../hopper.h"

namespace fbp::cuda {

template <int kRegisters>
void give_registers(FBP_SHIM_PLACE) {
  shim::set_registers(kRegisters, true, {file, line});
}
template <int kRegisters>
void take_registers(FBP_SHIM_PLACE) {
  shim::set_registers(kRegisters, false, {file, line});
}

}  // namespace fbp::cuda

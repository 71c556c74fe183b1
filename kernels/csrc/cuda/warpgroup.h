// How the warpgroups of a block divide its registers. Tests put a header of the same path before
// this one.

#pragma once

namespace fbp::cuda {

// For all threads of a warpgroup: gives registers back, so that a thread has no more than this.
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Likewise: waits until a thread can have so many.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fbp::cuda

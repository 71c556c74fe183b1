// Barriers in shared memory that count arrivals of threads and bytes of bulk copies. A phase ends
// when both have come; whoever waits names the phase by its parity, 0 first. Tests put a header of
// the same path before this one.

#pragma once

#include <cstdint>

#include "cuda/shared_memory.h"

namespace fbp::cuda {

using Mbarrier = std::uint64_t;

__device__ inline void mbarrier_init(Mbarrier* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// After the last mbarrier_init() of a thread: bulk copies see barriers from then on, other threads
// from the next __syncthreads().
__device__ inline void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}

__device__ inline void mbarrier_arrive(Mbarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives, and makes the phase wait for so many bytes.
__device__ inline void mbarrier_arrive_expecting(Mbarrier* barrier, unsigned bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// After a thread has written to shared memory, and before it says so to those who multiply it.
__device__ inline void proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Until a phase of that parity has ended; of a new barrier, that of parity 1 has.
__device__ inline void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
  const std::uint32_t address = shared_address(barrier);
  std::uint32_t ended = 0;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(ended)
        : "r"(address), "r"(parity)
        : "memory");
  } while (ended == 0);
}

}  // namespace fbp::cuda

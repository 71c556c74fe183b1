// Barriers in shared memory, by the shim.

#pragma once

#include "cuda/shared_memory.h"

namespace fbp::cuda {

using Mbarrier = std::uint64_t;

inline void mbarrier_init(Mbarrier* barrier, unsigned arrivals, FBP_SHIM_PLACE) {
  shim::mbarrier_init(barrier, arrivals, {file, line});
}
inline void mbarrier_init_fence() { shim::mbarrier_init_fence(); }
inline void mbarrier_arrive(Mbarrier* barrier, FBP_SHIM_PLACE) {
  shim::mbarrier_arrive(barrier, 0, {file, line});
}
inline void mbarrier_arrive_expecting(Mbarrier* barrier, unsigned bytes, FBP_SHIM_PLACE) {
  shim::mbarrier_arrive(barrier, bytes, {file, line});
}
inline void proxy_fence() { shim::proxy_fence(); }
inline void mbarrier_wait(Mbarrier* barrier, unsigned parity, FBP_SHIM_PLACE) {
  shim::mbarrier_wait(barrier, parity, {file, line});
}

}  // namespace fbp::cuda

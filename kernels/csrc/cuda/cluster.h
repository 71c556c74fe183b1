// The blocks of a cluster, which reach each other's shared memory: those of sm_90 and later, what
// is built for others stops.

#pragma once

#include <cooperative_groups.h>

#include "cuda/common.h"

namespace fbp::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// Until all threads of the cluster have come. For all of them.
__device__ inline void wait_for_cluster() { cooperative_groups::this_cluster().sync(); }

__device__ inline unsigned rank_in_cluster() {
  return cooperative_groups::this_cluster().block_rank();
}

// What the block of a rank has where the own one has `own`, in dynamic shared memory.
template <class T>
__device__ inline const T* of_rank(T* own, unsigned rank) {
  return cooperative_groups::this_cluster().map_shared_rank(own, rank);
}

#else

__device__ inline void wait_for_cluster() { __trap(); }
__device__ inline unsigned rank_in_cluster() { return 0; }
template <class T>
__device__ inline const T* of_rank(T* own, unsigned) {
  return own;
}

#endif

}  // namespace fbp::cuda

// Thread-block clusters on the host.

#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

class cluster_group {
 public:
  void sync(FBP_SHIM_PLACE) const { shim::cluster_barrier({file, line}); }
  unsigned block_rank() const { return shim::cluster_rank(); }
  unsigned num_blocks() const { return shim::cluster_size(); }

  // Where the block of a rank has what the own block has at an address.
  template <class T>
  T* map_shared_rank(T* own, unsigned rank) const {
    return static_cast<T*>(shim::of_rank(const_cast<std::remove_const_t<T>*>(own), rank));
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups

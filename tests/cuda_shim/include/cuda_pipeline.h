// Asynchronous copies from global to shared memory. They take place when the thread waits for them,
// no sooner, and until then the destination is NaN.

#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes,
                                    std::size_t zeros = 0) {
  const auto aligned = [&](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % bytes; };
  if (bytes != 4 && bytes != 8 && bytes != 16) shim::fail("an asynchronous copy of another size");
  if (aligned(to) != 0 || (zeros < bytes && aligned(from) != 0))
    shim::fail("an asynchronous copy that is not aligned");
  shim::copy_later(to, from, bytes, zeros);
}
inline void __pipeline_commit() { shim::close_copy_group(); }
inline void __pipeline_wait_prior(unsigned groups) { shim::wait_for_copies(groups); }

// Threads and scratch memory for the kernels. Declared without torch or standard headers, see
// problem.h.

#pragma once

#include "problem.h"

namespace fbp {

// Threads worth waking up for this much work: 1 where starting them would cost more than they save.
int threads_for(double flops);

// Calls job(context, worker, index) once for each index below `jobs`, on up to `threads` of torch's
// threads, each with its own worker number below `threads`. Each has its share of the indices, and
// helps with those of others when it is free, so no result may depend on who does which job.
// Exceptions must not leave a job.
void run_jobs(i64 jobs, int threads, void (*job)(const void* context, int worker, i64 index),
              const void* context);

// Uninitialised memory aligned to 64 bytes; throws std::bad_alloc.
void* allocate(i64 bytes);
void release(void* memory);

}  // namespace fbp

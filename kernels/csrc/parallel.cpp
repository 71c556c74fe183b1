#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace fbp {

namespace {

// Below this, waking a second thread (a few microseconds) costs more than it saves.
constexpr double kFlopsPerThread = 4e5;

}  // namespace

int threads_for(double flops) {
  const double worthwhile = std::max(1.0, flops / kFlopsPerThread);
  const double available = torch::stable::get_num_threads();
  return static_cast<int>(std::max(1.0, std::min(worthwhile, available)));
}

void run_jobs(i64 jobs, int threads, void (*job)(const void*, int, i64), const void* context) {
  threads = static_cast<int>(std::min<i64>(threads, jobs));
  if (threads <= 1) {
    for (i64 index = 0; index < jobs; ++index) job(context, 0, index);
    return;
  }
  std::atomic<i64> next{0};
  // One iteration per worker. Inside another parallel region torch runs all iterations on this
  // thread: the first then does all jobs and the others find none left.
  torch::stable::parallel_for(0, threads, 1, [&](i64 begin, i64 end) {
    for (i64 worker = begin; worker < end; ++worker)
      for (i64 index; (index = next.fetch_add(1, std::memory_order_relaxed)) < jobs;)
        job(context, static_cast<int>(worker), index);
  });
}

void* allocate(i64 bytes) {
  constexpr std::size_t alignment = 64;
  const std::size_t size =
      (static_cast<std::size_t>(bytes) + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, std::max(size, alignment));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void release(void* memory) { std::free(memory); }

}  // namespace fbp

#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>

namespace fbp {

namespace {

// Below this, waking a second thread (a few microseconds) costs more than it saves.
constexpr double kFlopsPerThread = 4e5;

// How many of its jobs are taken; a thread takes those of its own before it helps others. From call
// to call they are the same, so that it finds in its caches what it read.
struct alignas(64) Share {
  std::atomic<i64> taken{0};

  i64 take() { return taken.fetch_add(1, std::memory_order_relaxed); }
};

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
  // Thread i has jobs i, i + threads, ...: what lies together is worked on at the same time.
  const std::unique_ptr<Share[]> shares(new Share[static_cast<std::size_t>(threads)]);
  // One iteration per worker. Inside another parallel region torch runs all iterations on this
  // thread: the first then does all jobs and the others find none left.
  torch::stable::parallel_for(0, threads, 1, [&](i64 begin, i64 end) {
    for (i64 worker = begin; worker < end; ++worker)
      for (i64 ahead = 0; ahead < threads; ++ahead) {
        const i64 owner = (worker + ahead) % threads;
        for (i64 index; (index = owner + threads * shares[owner].take()) < jobs;)
          job(context, static_cast<int>(worker), index);
      }
  });
}

}  // namespace fbp

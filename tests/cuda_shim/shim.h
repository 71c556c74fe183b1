// What stands behind the CUDA built-ins on the host: clusters of blocks run one after the other,
// the threads of a cluster as fibers that give way where they wait for one another.
//
// It is stricter than a GPU where that finds mistakes: barriers that not all threads reach, warp
// operations that not all lanes of the mask reach alike, shared memory that is read before it is
// written (it starts as NaN), left (guard pages) or read after its block has ended (NaN again),
// accesses that are not aligned. Clusters, the blocks of a cluster and the threads of a block run
// in an order that a seed decides, each block as far as it gets alone.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace shim {

// Where a kernel's source calls something.
struct Place {
  const char* file;
  int line;
};

// Ends the launch with an error; only from within a kernel.
[[noreturn]] void fail(const std::string& what);

// Waits until all threads of the block have come.
void barrier(Place place);

// Waits until all threads of the cluster have come.
void cluster_barrier(Place place);

// The own block's place in its cluster, and how many blocks that has.
unsigned cluster_rank();
unsigned cluster_size();

// Where another block of the cluster has what the own block has at an address in dynamic shared
// memory.
void* of_rank(void* own, unsigned rank);

// Waits until `threads` threads have come to the barrier of that number.
void named_barrier(int number, int threads, Place place);

// Waits until `done` says so.
void wait_until(const char* what, std::function<bool()> done, Place place);

// Work that takes place at some time from now on, but before anybody is held to wait for nothing.
// It may throw.
void later(std::function<void()> work);

// By the order: no in `forward`, yes in `reverse`, drawn in `shuffled`.
bool soon();

// Gives way to other threads where the order is drawn, now and then.
void perhaps_give_way();

// Where the order is drawn, some warps are held up for some rounds of all threads, or until all
// others have come as far as they can without them: those that what is told of draws, the same for
// all lanes that tell the same.
void perhaps_hold_up(std::uint64_t of);

// The block's number in its cluster, and the warp's in its block, of the running thread.
int warp();
unsigned block_threads();

// The dynamic shared memory of a block of the cluster.
unsigned char* shared_memory_of(unsigned rank);

using Combine = void (*)(void* const lanes[32]);

// Waits until all lanes of the mask have come, each with its own data; the last to come combines
// them (a lane that is not in the mask is null). `operation` must be the same for all.
void meet(const char* operation, unsigned mask, void* own, Combine combine, Place place);

int lane();

// The block's dynamic shared memory, and its size.
unsigned char* shared_memory();
std::size_t shared_size();

// A copy that takes place no sooner than the thread waits for the group that it belongs to.
void copy_later(void* to, const void* from, std::size_t bytes, std::size_t zeros);
void close_copy_group();
void wait_for_copies(unsigned groups_left);

struct Launch {
  dim3 grid, block;
  unsigned cluster = 1;  // blocks, side by side in x
  std::size_t shared = 0;
  std::function<void()> body;  // of a thread
};

// Runs a kernel to its end. Throws std::runtime_error where it does what a kernel must not.
void run(const Launch& launch);

// What tests set and read.
enum class Order { forward, reverse, shuffled };

struct Settings {
  Order order = Order::forward;
  std::uint64_t seed = 0;
  bool tf32 = false;  // whether float32 may be multiplied as TF32
};

Settings& settings();

struct Counts {
  std::int64_t launches = 0, blocks = 0;
  std::int64_t threads = 0;  // of a block of the last launch
};

Counts& counts();

// What no device exceeds.
constexpr unsigned kMostThreads = 1024;  // of a block
constexpr unsigned kMostBlocks = 8;      // of a cluster, without leave for more
constexpr std::size_t kMostShared = 227 << 10;

}  // namespace shim

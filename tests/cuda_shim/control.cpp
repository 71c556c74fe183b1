// What tests call, by ctypes: settings, counts, and memory between pages that nobody may touch.

#include "control.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "cuda/terms.h"

namespace {

constexpr unsigned char kPoison = 0xff;  // NaN in every floating dtype, and no sensible integer

std::size_t page() {
  static const std::size_t size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

std::atomic<std::int64_t> spoiled{0};  // tensors whose surroundings, on their own pages, changed
std::atomic<bool> at_end{true};        // whether tensors end, or begin, where their pages do

// A tensor's memory: data between two pages without access, the rest of its own pages poisoned.
struct Block {
  unsigned char* mapping;
  std::size_t mapped;
  unsigned char* data;
  std::size_t bytes;

  explicit Block(std::size_t n) : bytes(n) {
    constexpr std::size_t kAligned = 16;  // all that kernels may rely on
    const std::size_t inner = (n + page() - 1) / page() * page();
    mapped = inner + 2 * page();
    void* all = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    mapping = static_cast<unsigned char*>(all);
    if (inner > 0 && mprotect(mapping + page(), inner, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
    std::memset(mapping + page(), kPoison, inner);
    data = mapping + page();
    if (at_end) data += inner - (n + kAligned - 1) / kAligned * kAligned;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    const unsigned char* const end = mapping + mapped - page();
    bool whole = true;
    for (const unsigned char* at = mapping + page(); at < end; ++at)
      whole = whole && (*at == kPoison || (at >= data && at < data + bytes));
    if (!whole) ++spoiled;
    munmap(mapping, mapped);
  }
};

// Memory that was asked for during a capture stays for the graph, and is handed on within it, as
// torch's allocator does.
class Pool {
 public:
  void* take(std::size_t bytes) {
    const std::lock_guard<std::mutex> guard(lock_);
    const auto found = free_.find(bytes);
    if (found == free_.end()) return nullptr;
    Block* const block = found->second;
    free_.erase(found);
    return block;
  }
  void keep(Block* block) {
    const std::lock_guard<std::mutex> guard(lock_);
    free_.emplace(block->bytes, block);
  }
  void clear() {
    const std::lock_guard<std::mutex> guard(lock_);
    for (const auto& [bytes, block] : free_) delete block;
    free_.clear();
  }

 private:
  std::mutex lock_;
  std::multimap<std::size_t, Block*> free_;
};

Pool pool;

void release(void* block) { delete static_cast<Block*>(block); }
void give_back(void* block) { pool.keep(static_cast<Block*>(block)); }

class Guarded final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    const bool captured = shim::capturing();
    auto* block = captured ? static_cast<Block*>(pool.take(bytes)) : nullptr;
    if (block == nullptr) block = new Block(bytes);
    return {block->data, block, captured ? &give_back : &release,
            c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

Guarded guarded;
c10::Allocator* usual = nullptr;
constexpr std::uint8_t kPriority = 1;

}  // namespace

#define FBP_CONTROL extern "C" __attribute__((visibility("default")))

// 0: blocks and threads in order; 1: in the reverse; 2: shuffled by the seed.
FBP_CONTROL void fbp_shim_order(int order, std::uint64_t seed) {
  shim::settings().order = static_cast<shim::Order>(order);
  shim::settings().seed = seed;
}

FBP_CONTROL void fbp_shim_device(int multiprocessors, int major, int shared_bytes) {
  shim::use_device(multiprocessors, major, shared_bytes);
}

FBP_CONTROL void fbp_shim_static_bytes(const void* kernel, int bytes) {
  shim::set_static_bytes(kernel, bytes);
}

// The launch of that number, from now on, is refused; none where it is negative.
FBP_CONTROL void fbp_shim_fail_launch(int number) { shim::fail_launch(number); }

// Of the runtime, which forgets it.
FBP_CONTROL int fbp_shim_last_error() { return cudaGetLastError(); }

FBP_CONTROL void fbp_shim_begin_capture() { shim::begin_capture(); }

FBP_CONTROL int fbp_shim_end_capture() { return shim::end_capture(); }

FBP_CONTROL std::int64_t fbp_shim_nodes(int graph) {
  return static_cast<std::int64_t>(shim::graph(graph).size());
}

// Says what went wrong, if anything.
FBP_CONTROL const char* fbp_shim_replay(int graph) {
  static std::string said;
  said.clear();
  try {
    for (const shim::Work& work : shim::graph(graph)) work();
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  return said.c_str();
}

// Frees what graphs kept.
FBP_CONTROL void fbp_shim_forget_graphs() { pool.clear(); }

FBP_CONTROL void fbp_shim_tf32(bool allowed) { shim::settings().tf32 = allowed; }

FBP_CONTROL void fbp_shim_terms(int count) { fbp::cuda::kTerms = count; }

FBP_CONTROL std::int64_t fbp_shim_launches() { return shim::counts().launches; }

FBP_CONTROL std::int64_t fbp_shim_blocks() { return shim::counts().blocks; }

FBP_CONTROL std::int64_t fbp_shim_threads() { return shim::counts().threads; }

// From now on new tensors of the processor lie between pages without access, filled with NaN.
FBP_CONTROL void fbp_shim_guard(bool end) {
  at_end = end;
  if (usual == nullptr) usual = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&guarded, kPriority);
}

FBP_CONTROL void fbp_shim_unguard() { c10::SetCPUAllocator(usual, kPriority); }

FBP_CONTROL std::int64_t fbp_shim_spoiled() { return spoiled.exchange(0); }

// Scratch memory of the kernels, of which large blocks are kept for the next call: the system would
// map and clear them anew, page by page, which takes as long as a tenth of a backward.

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel.h"

namespace fbp {

namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kMiB = 1 << 20;

// What precedes a block tells its capacity.
char* start(void* block) { return static_cast<char*>(block) - kAlignment; }
std::size_t& capacity(void* block) { return *reinterpret_cast<std::size_t*>(start(block)); }

// Bytes that may be kept.
std::size_t limit() {
  const char* const wanted = std::getenv("FBP_SCRATCH_MIB");
  if (wanted == nullptr || *wanted == '\0') return 32 * kMiB;
  char* end = nullptr;
  const long mebibytes = std::strtol(wanted, &end, 10);
  if (*end != '\0' || mebibytes < 0 || mebibytes > (1 << 20))
    throw std::runtime_error("the environment variable FBP_SCRATCH_MIB is '" + std::string(wanted) +
                             "', expected a number from 0 to 1048576");
  return static_cast<std::size_t>(mebibytes) * kMiB;
}

class Spare {
 public:
  // The smallest block of that capacity or up to twice as much, or null.
  void* take(std::size_t least) {
    if (least < kLeast) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    void** best = nullptr;
    for (void*& block : blocks_)
      if (block != nullptr && least <= capacity(block) && capacity(block) <= 2 * least &&
          (best == nullptr || capacity(block) < capacity(*best)))
        best = &block;
    if (best == nullptr) return nullptr;
    bytes_ -= capacity(*best);
    return std::exchange(*best, nullptr);
  }

  // Whether there was room for a block.
  bool keep(void* block) {
    if (capacity(block) < kLeast) return false;
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto place = std::find(blocks_.begin(), blocks_.end(), static_cast<void*>(nullptr));
    if (place == blocks_.end() || bytes_ + capacity(block) > limit_) return false;
    *place = block;
    bytes_ += capacity(block);
    return true;
  }

 private:
  static constexpr std::size_t kLeast = 64 << 10;  // below, the C library keeps them itself

  std::mutex mutex_;
  std::array<void*, 16> blocks_{};
  std::size_t bytes_ = 0;
  const std::size_t limit_ = limit();
};

Spare& spare() {
  static Spare* const blocks = new Spare;  // never destroyed: threads may outlive it
  return *blocks;
}

}  // namespace

void* allocate(i64 bytes) {
  const auto size = static_cast<std::size_t>(std::max<i64>(bytes, 1));
  const std::size_t needed = (size + kAlignment - 1) / kAlignment * kAlignment;
  if (void* const kept = spare().take(needed)) return kept;
  void* const memory = std::aligned_alloc(kAlignment, kAlignment + needed);
  if (memory == nullptr) throw std::bad_alloc();
  void* const block = static_cast<char*>(memory) + kAlignment;
  capacity(block) = needed;
  return block;
}

void release(void* block) {
  if (block != nullptr && !spare().keep(block)) std::free(start(block));
}

}  // namespace fbp

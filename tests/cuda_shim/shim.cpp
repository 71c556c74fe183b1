#include "shim.h"

#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "fiber.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl fbp_shim_switch
.hidden fbp_shim_switch
.type fbp_shim_switch, @function
fbp_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fbp_shim_switch, .-fbp_shim_switch
)");
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {

namespace {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr int kMostThreads = 1024;
constexpr unsigned char kPoison = 0xff;  // NaN, whatever the type

enum class State : unsigned char { ready, at_barrier, at_named_barrier, in_warp, ended };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes, zeros;
};

struct Thread {
  Fiber fiber;
  uint3 index;
  Place place;                                // where it waits
  const char* operation;                      // of a warp
  unsigned mask;                              // likewise
  void* own;                                  // likewise
  int barrier;                                // named
  std::vector<std::vector<Copy>> copies{{}};  // by group, the open one last
};

// What nobody may touch around memory: more than a page, for what misses its mark by far.
constexpr std::size_t kGuard = 64 << 10;

// Memory between guards.
class Pages {
 public:
  explicit Pages(std::size_t bytes) {
    const std::size_t page = sysconf(_SC_PAGESIZE);
    size_ = (bytes + page - 1) / page * page;
    void* all = mmap(nullptr, size_ + 2 * kGuard, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) throw std::runtime_error("no memory for the stacks of a block");
    begin_ = static_cast<unsigned char*>(all) + kGuard;
    if (mprotect(begin_, size_, PROT_READ | PROT_WRITE) != 0)
      throw std::runtime_error("no memory for the stacks of a block");
  }
  Pages(Pages&& other) noexcept : size_(other.size_), begin_(other.begin_) {
    other.begin_ = nullptr;
  }
  ~Pages() {
    if (begin_ != nullptr) munmap(begin_ - kGuard, size_ + 2 * kGuard);
  }

  unsigned char* begin() const { return begin_; }
  unsigned char* end() const { return begin_ + size_; }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  unsigned char* begin_;
};

std::string text(uint3 index) {
  std::ostringstream out;
  out << "(" << index.x << ", " << index.y << ", " << index.z << ")";
  return out.str();
}

std::string text(Place place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash != nullptr ? slash + 1 : place.file) + ":" + std::to_string(place.line);
}

// The static shared variables of all kernels: they are this library's thread-local ones, and these
// lie together.
struct StaticShared {
  unsigned char* begin = nullptr;
  std::size_t size = 0;
};

// The one launch that is under way: threads, memory and what each thread waits for.
struct Machine {
  std::vector<Pages> stacks;
  std::vector<Thread> threads{kMostThreads};
  std::vector<State> states{std::vector<State>(kMostThreads)};
  std::vector<int> order;
  Pages shared{kSharedLimit + 4096};
  unsigned char* shared_begin = nullptr;
  StaticShared static_shared;
  Fiber scheduler;
  const Launch* launch = nullptr;
  int count = 0;    // threads of a block
  int running = 0;  // the thread that runs
  int arrived = 0;  // at the block's barrier
  int ended = 0;
  Settings settings;
  Counts counts;
  std::string error;
  sigjmp_buf escape;
  std::mt19937_64 random;

  Thread& now() { return threads[running]; }

  void give_way(State state) {
    states[running] = state;
    switch_to(now().fiber, scheduler);
  }
};

Machine& machine() {
  static Machine one;
  return one;
}

void begin_thread() {
  Machine& m = machine();
  m.launch->body(m.launch->arguments);
  for (const auto& group : m.now().copies)
    if (!group.empty()) fail("the thread ends before it has waited for its copies");
  ++m.ended;
  m.give_way(State::ended);
}

// Faults of a kernel, told as errors of the launch.
void fault(int signal, siginfo_t* info, void*) {
  Machine& m = machine();
  std::ostringstream what;
  if (signal == SIGILL || signal == SIGTRAP) {
    what << "an access that is not aligned or not within an array, a trap or a failed assertion";
  } else {
    what << "access to address " << info->si_addr << ", outside of all memory that there is";
    const auto* address = static_cast<unsigned char*>(info->si_addr);
    if (address >= m.shared.end() && address < m.shared.end() + kGuard) what << " (shared)";
  }
  m.error = what.str();
  siglongjmp(m.escape, 1);
}

class Handlers {
 public:
  Handlers() : stack_(64 << 10) {
    stack_t own{};
    own.ss_sp = stack_.begin();
    own.ss_size = stack_.size();
    sigaltstack(&own, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < kSignals; ++i) sigaction(signals_[i], &action, &old_[i]);
  }
  ~Handlers() {
    for (int i = 0; i < kSignals; ++i) sigaction(signals_[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int kSignals = 4;
  static constexpr int signals_[kSignals] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
  Pages stack_;
  stack_t old_stack_;
  struct sigaction old_[kSignals];
};

// Why nobody can go on.
std::string stuck(const Machine& m) {
  std::map<std::string, int> groups;
  for (int i = 0; i < m.count; ++i) {
    const Thread& t = m.threads[i];
    switch (m.states[i]) {
      case State::at_barrier:
        ++groups["wait at the barrier " + text(t.place)];
        break;
      case State::at_named_barrier:
        ++groups["wait at barrier number " + std::to_string(t.barrier) + ", " + text(t.place)];
        break;
      case State::in_warp:
        ++groups[std::string("wait in ") + t.operation + ", " + text(t.place)];
        break;
      default:
        ++groups["have ended"];
    }
  }
  std::string all = "not all threads reach the same point:";
  for (const auto& [what, count] : groups) all += " " + std::to_string(count) + " " + what + ";";
  all.pop_back();
  return all;
}

void arrange(std::vector<int>& order, int count, Order how, std::mt19937_64& random) {
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  if (how == Order::reverse) std::reverse(order.begin(), order.end());
  if (how == Order::shuffled) std::shuffle(order.begin(), order.end(), random);
}

StaticShared static_shared() {
  static thread_local unsigned char one_of_them[16];
  one_of_them[0] = kPoison;  // so that they exist for this thread
  StaticShared found;
  struct Search {
    const unsigned char* inside;
    StaticShared* found;
  } search{one_of_them, &found};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* pointer) {
        const Search& wanted = *static_cast<Search*>(pointer);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_TLS || info->dlpi_tls_data == nullptr) continue;
          auto* begin = static_cast<unsigned char*>(info->dlpi_tls_data);
          const std::size_t size = info->dlpi_phdr[i].p_memsz;
          if (wanted.inside >= begin && wanted.inside < begin + size) *wanted.found = {begin, size};
        }
        return 0;
      },
      &search);
  if (found.begin == nullptr) throw std::runtime_error("no static shared memory was found");
  return found;
}

void check_slack(const Machine& m) {
  const unsigned char* from = m.shared_begin + m.launch->shared;
  if (std::any_of(from, const_cast<const unsigned char*>(m.shared.end()),
                  [](unsigned char byte) { return byte != kPoison; }))
    throw std::runtime_error("dynamic shared memory was written beyond its end");
}

void run_block(Machine& m) {
  const dim3 block = m.launch->block;
  std::memset(m.shared_begin, kPoison, m.shared.end() - m.shared_begin);
  std::memset(m.static_shared.begin, kPoison, m.static_shared.size);
  for (int i = 0; i < m.count; ++i) {
    Thread& t = m.threads[i];
    t.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    t.copies.assign(1, {});
    m.states[i] = State::ready;
    prepare(t.fiber, m.stacks[i].begin(), m.stacks[i].size(), begin_thread);
  }
  m.arrived = m.ended = 0;
  arrange(m.order, m.count, m.settings.order, m.random);
  if (sigsetjmp(m.escape, 1) == 0) {
    while (m.ended < m.count) {
      bool progress = false;
      for (const int i : m.order) {
        if (m.states[i] != State::ready) continue;
        progress = true;
        m.running = i;
        threadIdx = m.threads[i].index;
        switch_to(m.scheduler, m.threads[i].fiber);
        if (!m.error.empty()) break;
      }
      if (!m.error.empty()) break;
      if (!progress) {
        m.error = stuck(m);
        break;
      }
    }
  }
  if (!m.error.empty()) {
    std::string error = "block " + text(blockIdx) + ", thread " + text(threadIdx) + ": " + m.error;
    m.error.clear();
    throw std::runtime_error(error);
  }
  check_slack(m);
}

void check_sizes(const Launch& launch) {
  const auto threads = std::uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const dim3 g = launch.grid;
  if (threads < 1 || threads > kMostThreads || launch.block.z > 64)
    throw std::runtime_error(std::to_string(threads) + " threads in a block");
  if (g.x < 1 || g.y < 1 || g.z < 1 || g.x > 0x7fffffff || g.y > 65535 || g.z > 65535)
    throw std::runtime_error("a grid of " + text(uint3{g.x, g.y, g.z}) + " blocks");
  if (launch.shared > kSharedLimit)
    throw std::runtime_error(std::to_string(launch.shared) + " bytes of dynamic shared memory");
}

void run_grid(Machine& m, const Launch& launch) {
  check_sizes(launch);
  m.launch = &launch;
  m.count = launch.block.x * launch.block.y * launch.block.z;
  while (m.stacks.size() < static_cast<std::size_t>(m.count)) m.stacks.emplace_back(kStackBytes);
  // The end, rounded to what vector accesses and bulk copies need, meets the guard page.
  m.shared_begin = m.shared.end() - (launch.shared + 127) / 128 * 128;
  blockDim = launch.block;
  gridDim = launch.grid;
  m.static_shared = static_shared();
  m.random.seed(m.settings.seed);
  std::vector<int> blocks;
  arrange(blocks, launch.grid.x * launch.grid.y * launch.grid.z, m.settings.order, m.random);
  const Handlers handlers;
  for (const unsigned b : blocks) {
    blockIdx = {b % launch.grid.x, b / launch.grid.x % launch.grid.y,
                b / launch.grid.x / launch.grid.y};
    run_block(m);
  }
  ++m.counts.launches;
  m.counts.blocks += static_cast<std::int64_t>(blocks.size());
}

}  // namespace

Settings& settings() { return machine().settings; }

Counts& counts() { return machine().counts; }

void run(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  try {
    run_grid(machine(), launch);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(launch.name) + ", " + error.what());
  }
}

void fail(const std::string& what) {
  Machine& m = machine();
  m.error = what;
  switch_to(m.now().fiber, m.scheduler);
  __builtin_unreachable();
}

int lane() { return machine().running % 32; }

void barrier(Place place) {
  Machine& m = machine();
  m.now().place = place;
  if (++m.arrived < m.count) return m.give_way(State::at_barrier);
  m.arrived = 0;
  for (int i = 0; i < m.count; ++i) {
    if (i == m.running) continue;
    if (m.threads[i].place.line != place.line)
      fail("threads meet at different barriers: " + text(place) + " and " +
           text(m.threads[i].place));
    m.states[i] = State::ready;
  }
  m.give_way(State::ready);  // so that the order is that of the block again
}

void named_barrier(int number, int threads, Place place) {
  Machine& m = machine();
  m.now().place = place;
  m.now().barrier = number;
  std::vector<int> waiting;
  for (int i = 0; i < m.count; ++i)
    if (m.states[i] == State::at_named_barrier && m.threads[i].barrier == number)
      waiting.push_back(i);
  if (static_cast<int>(waiting.size()) + 1 < threads) return m.give_way(State::at_named_barrier);
  for (const int i : waiting) m.states[i] = State::ready;
  m.give_way(State::ready);
}

void meet(const char* operation, unsigned mask, void* own, Combine combine, Place place) {
  Machine& m = machine();
  Thread& me = m.now();
  const int first = m.running / 32 * 32;
  me.operation = operation;
  me.mask = mask;
  me.own = own;
  me.place = place;
  if ((mask >> (m.running - first) & 1) == 0)
    fail(std::string(operation) + ", " + text(place) + ": the mask lacks the lane that asks");
  void* lanes[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const int i = first + lane;
    if (i >= m.count || m.states[i] == State::ended)
      fail(std::string(operation) + ", " + text(place) + ": lane " + std::to_string(lane) +
           " of the mask is not there");
    const Thread& other = m.threads[i];
    if (i != m.running && m.states[i] != State::in_warp) return m.give_way(State::in_warp);
    if (other.mask != mask || std::strcmp(other.operation, operation) != 0 ||
        other.place.line != place.line)
      fail("lanes of a warp meet in " + std::string(operation) + ", " + text(place) + ", and " +
           other.operation + ", " + text(other.place));
    lanes[lane] = other.own;
  }
  combine(lanes);
  for (int lane = 0; lane < 32; ++lane)
    if (lanes[lane] != nullptr) m.states[first + lane] = State::ready;
  m.give_way(State::ready);
}

unsigned char* shared_memory() { return machine().shared_begin; }

std::size_t shared_size() { return machine().launch->shared; }

void copy_later(void* to, const void* from, std::size_t bytes, std::size_t zeros) {
  std::memset(to, kPoison, bytes);
  machine().now().copies.back().push_back({to, from, bytes, zeros});
}

void close_copy_group() { machine().now().copies.emplace_back(); }

void wait_for_copies(unsigned groups_left) {
  auto& copies = machine().now().copies;
  // The open group does not count: nothing waits for it.
  while (copies.size() > groups_left + 1) {
    for (const Copy& copy : copies.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
      std::memset(static_cast<unsigned char*>(copy.to) + copy.bytes - copy.zeros, 0, copy.zeros);
    }
    copies.erase(copies.begin());
  }
}

}  // namespace shim

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
#include "hopper.h"

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
constexpr unsigned char kPoison = 0xff;  // NaN, whatever the type

enum class State : unsigned char {
  ready,
  at_barrier,
  at_cluster_barrier,
  at_named_barrier,
  in_warp,
  until,
  held,
  ended
};

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
  const char* awaited;                        // what it waits for
  std::function<bool()> done;                 // when it need not wait any more
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

// A block of the cluster that runs.
struct Block {
  uint3 index;
  Pages shared{kMostShared + 4096};
  std::vector<unsigned char> statics;  // while another block runs
  int first = 0;                       // of its threads
  int arrived = 0;                     // at its barrier
  int ended = 0;
};

// The one launch that is under way: threads, memory and what each thread waits for.
struct Machine {
  std::vector<Pages> stacks;
  std::vector<Thread> threads;
  std::vector<State> states;
  std::vector<Block> blocks{kMostBlocks};
  StaticShared static_shared;
  Fiber scheduler;
  const Launch* launch = nullptr;
  int count = 0;           // threads of a block
  int running = 0;         // the thread that runs
  Block* block = nullptr;  // and its block
  int arrived = 0;         // at the cluster's barrier
  Settings settings;
  Counts counts;
  std::string error;
  sigjmp_buf escape;
  std::mt19937_64 random;
  std::vector<std::function<void()>> in_flight;

  Thread& now() { return threads[running]; }
  int own() const { return running - block->first; }  // within its block
  unsigned char* shared_begin(const Block& of) const {
    // The end, rounded to what vector accesses and bulk copies need, meets the guard page.
    return of.shared.end() - (launch->shared + 127) / 128 * 128;
  }

  void give_way(State state) {
    states[running] = state;
    switch_to(now().fiber, scheduler);
  }
};

Machine only_machine;  // whoever asks for it does so millions of times
Machine& machine() { return only_machine; }

void begin_thread() {
  Machine& m = machine();
  m.launch->body();
  for (const auto& group : m.now().copies)
    if (!group.empty()) fail("the thread ends before it has waited for its copies");
  end_of_thread();
  ++m.block->ended;
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
    for (const Block& block : m.blocks)
      if (address >= block.shared.end() && address < block.shared.end() + kGuard)
        what << " (shared)";
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
  for (unsigned i = 0; i < m.count * m.launch->cluster; ++i) {
    const Thread& t = m.threads[i];
    switch (m.states[i]) {
      case State::at_cluster_barrier:
        ++groups["wait at the cluster's barrier " + text(t.place)];
        break;
      case State::at_barrier:
        ++groups["wait at the barrier " + text(t.place)];
        break;
      case State::at_named_barrier:
        ++groups["wait at barrier number " + std::to_string(t.barrier) + ", " + text(t.place)];
        break;
      case State::in_warp:
        ++groups[std::string("wait in ") + t.operation + ", " + text(t.place)];
        break;
      case State::until:
        ++groups[std::string("wait for ") + t.awaited + ", " + text(t.place)];
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

void check_slack(const Machine& m, const Block& block) {
  const unsigned char* from = m.shared_begin(block) + m.launch->shared;
  if (std::any_of(from, const_cast<const unsigned char*>(block.shared.end()),
                  [](unsigned char byte) { return byte != kPoison; }))
    throw std::runtime_error("dynamic shared memory was written beyond its end");
}

void poison(Machine& m, Block& block) {
  std::memset(m.shared_begin(block), kPoison, block.shared.end() - m.shared_begin(block));
}

void prepare_block(Machine& m, Block& block) {
  const dim3 size = m.launch->block;
  poison(m, block);
  block.statics.assign(m.static_shared.size, kPoison);
  block.arrived = block.ended = 0;
  begin_hopper(static_cast<unsigned>(&block - m.blocks.data()), static_cast<unsigned>(m.count));
  for (int i = 0; i < m.count; ++i) {
    const int at = block.first + i;
    Thread& t = m.threads[at];
    t.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    t.copies.assign(1, {});
    m.states[at] = State::ready;
    prepare(t.fiber, m.stacks[at].begin(), m.stacks[at].size(), begin_thread);
  }
}

// Lets something take place that is asynchronous.
void land(Machine& m) {
  std::size_t which = 0;
  if (m.settings.order == Order::shuffled) which = m.random() % m.in_flight.size();
  const auto work = std::move(m.in_flight[which]);
  m.in_flight.erase(m.in_flight.begin() + static_cast<std::ptrdiff_t>(which));
  try {
    work();
  } catch (const std::runtime_error& error) {
    m.error = error.what();
  }
}

// Runs a block as far as it gets alone; says whether it got anywhere, or what another block may
// wait for has landed.
bool advance(Machine& m, Block& block, std::vector<int>& order) {
  m.block = &block;
  blockIdx = block.index;
  std::copy(block.statics.begin(), block.statics.end(), m.static_shared.begin);
  bool any = false, landed = false;
  for (bool progress = true; progress && m.error.empty();) {
    progress = false;
    if (!m.in_flight.empty() && soon()) {
      land(m);
      landed = true;
    }
    if (!m.error.empty()) break;
    for (const int i : order) {
      const int at = block.first + i;
      if (m.states[at] == State::until && m.threads[at].done()) m.states[at] = State::ready;
      if (m.states[at] != State::ready) continue;
      any = progress = true;
      m.running = at;
      threadIdx = m.threads[at].index;
      switch_to(m.scheduler, m.threads[at].fiber);
      if (!m.error.empty()) break;
    }
  }
  std::copy_n(m.static_shared.begin, block.statics.size(), block.statics.begin());
  if (any && block.ended == m.count && m.error.empty()) {
    check_slack(m, block);
    end_hopper(static_cast<unsigned>(&block - m.blocks.data()));
    poison(m, block);  // nobody may read it any more
  }
  return any || landed;
}

// Lets go whoever is held up; says whether anybody was.
bool let_go(Machine& m) {
  bool any = false;
  for (State& state : m.states) {
    if (state != State::held) continue;
    state = State::ready;
    any = true;
  }
  return any;
}

// The blocks from `first` on that are a cluster.
void run_cluster(Machine& m, unsigned first) {
  const unsigned cluster = m.launch->cluster;
  const dim3 grid = m.launch->grid;
  for (unsigned rank = 0; rank < cluster; ++rank) {
    Block& block = m.blocks[rank];
    const unsigned b = first + rank;
    block.index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    block.first = static_cast<int>(rank) * m.count;
    prepare_block(m, block);
  }
  m.arrived = 0;
  std::vector<int> order, ranks;
  arrange(order, m.count, m.settings.order, m.random);
  arrange(ranks, static_cast<int>(cluster), m.settings.order, m.random);
  if (sigsetjmp(m.escape, 1) == 0) {
    const auto ended = [&] {
      return std::all_of(ranks.begin(), ranks.end(),
                         [&](int rank) { return m.blocks[rank].ended == m.count; });
    };
    while (m.error.empty() && !ended()) {
      bool progress = false;
      for (const int rank : ranks) {
        progress = advance(m, m.blocks[rank], order) || progress;
        if (!m.error.empty()) break;
      }
      if (!m.error.empty() || progress) continue;
      if (!m.in_flight.empty()) {
        land(m);
      } else if (!let_go(m)) {
        m.error = stuck(m);
      }
    }
  }
  if (m.error.empty()) return;
  const std::string error = std::move(m.error);
  m.error.clear();
  throw std::runtime_error("block " + text(blockIdx) + ", thread " + text(threadIdx) + ": " +
                           error);
}

void run_grid(Machine& m, const Launch& launch) {
  m.launch = &launch;
  m.count = launch.block.x * launch.block.y * launch.block.z;
  const std::size_t all = m.count * launch.cluster;
  while (m.stacks.size() < all) m.stacks.emplace_back(kStackBytes);
  if (m.threads.size() < all) {
    m.threads.resize(all);
    m.states.resize(all);
  }
  blockDim = launch.block;
  gridDim = launch.grid;
  m.static_shared = static_shared();
  m.random.seed(m.settings.seed);
  m.in_flight.clear();
  const unsigned blocks = launch.grid.x * launch.grid.y * launch.grid.z;
  std::vector<int> clusters;
  arrange(clusters, static_cast<int>(blocks / launch.cluster), m.settings.order, m.random);
  const Handlers handlers;
  for (const int cluster : clusters) run_cluster(m, cluster * launch.cluster);
  ++m.counts.launches;
  m.counts.blocks += blocks;
  m.counts.threads = m.count;
}

}  // namespace

Settings& settings() { return machine().settings; }

Counts& counts() { return machine().counts; }

void run(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  run_grid(machine(), launch);
}

void fail(const std::string& what) {
  Machine& m = machine();
  m.error = what;
  switch_to(m.now().fiber, m.scheduler);
  __builtin_unreachable();
}

int lane() { return machine().own() % 32; }

// All threads from `first` to `end`, the running one among them, have come to its barrier.
static void release(Machine& m, int first, int end) {
  const Place place = m.now().place;
  for (int i = first; i < end; ++i) {
    if (i == m.running) continue;
    if (m.threads[i].place.line != place.line)
      fail("threads meet at different barriers: " + text(place) + " and " +
           text(m.threads[i].place));
    m.states[i] = State::ready;
  }
  m.give_way(State::ready);  // so that the order is that of the block again
}

void barrier(Place place) {
  Machine& m = machine();
  m.now().place = place;
  if (++m.block->arrived < m.count) return m.give_way(State::at_barrier);
  m.block->arrived = 0;
  release(m, m.block->first, m.block->first + m.count);
}

void cluster_barrier(Place place) {
  Machine& m = machine();
  m.now().place = place;
  const int all = m.count * static_cast<int>(m.launch->cluster);
  if (++m.arrived < all) return m.give_way(State::at_cluster_barrier);
  m.arrived = 0;
  release(m, 0, all);
}

unsigned cluster_rank() { return static_cast<unsigned>(machine().block - machine().blocks.data()); }

unsigned cluster_size() { return machine().launch->cluster; }

void* of_rank(void* own, unsigned rank) {
  Machine& m = machine();
  const unsigned char* const begin = m.shared_begin(*m.block);
  const auto* const at = static_cast<unsigned char*>(own);
  if (at < begin || at >= m.block->shared.end())
    fail("what another block is asked for is not in dynamic shared memory");
  if (rank >= cluster_size()) fail("the cluster has no block " + std::to_string(rank));
  return m.shared_begin(m.blocks[rank]) + (at - begin);
}

void named_barrier(int number, int threads, Place place) {
  Machine& m = machine();
  m.now().place = place;
  m.now().barrier = number;
  std::vector<int> waiting;
  for (int i = m.block->first; i < m.block->first + m.count; ++i)
    if (m.states[i] == State::at_named_barrier && m.threads[i].barrier == number)
      waiting.push_back(i);
  if (static_cast<int>(waiting.size()) + 1 < threads) return m.give_way(State::at_named_barrier);
  for (const int i : waiting) m.states[i] = State::ready;
  m.give_way(State::ready);
}

void wait_until(const char* what, std::function<bool()> done, Place place) {
  Machine& m = machine();
  if (done()) return;
  m.now().place = place;
  m.now().awaited = what;
  m.now().done = std::move(done);
  m.give_way(State::until);
}

void later(std::function<void()> work) { machine().in_flight.push_back(std::move(work)); }

bool soon() {
  Machine& m = machine();
  return m.settings.order == Order::reverse ||
         (m.settings.order == Order::shuffled && m.random() % 2 == 0);
}

void perhaps_give_way() {
  Machine& m = machine();
  if (m.settings.order == Order::shuffled && m.random() % 4 == 0) m.give_way(State::ready);
}

void perhaps_hold_up(std::uint64_t of) {
  constexpr int kRounds = 8;  // more than a product takes to be asked for
  Machine& m = machine();
  if (m.settings.order != Order::shuffled) return;
  // SplitMix64: a seed of `random` for each of so many would take longer than what is held up.
  std::uint64_t x = (of * kMostThreads + static_cast<unsigned>(warp())) ^ m.settings.seed << 48;
  for (const std::uint64_t factor : {0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu})
    x = (x ^ x >> 30) * factor;
  if ((x >> 32) % 4 != 0) return;
  if ((x >> 34) % 2 != 0) return m.give_way(State::held);
  for (int i = 0; i < kRounds; ++i) m.give_way(State::ready);
}

int warp() { return machine().own() / 32; }

unsigned block_threads() { return static_cast<unsigned>(machine().count); }

unsigned char* shared_memory_of(unsigned rank) {
  return machine().shared_begin(machine().blocks[rank]);
}

void meet(const char* operation, unsigned mask, void* own, Combine combine, Place place) {
  Machine& m = machine();
  Thread& me = m.now();
  const int first = m.block->first + m.own() / 32 * 32;
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
    if (i >= m.block->first + m.count || m.states[i] == State::ended)
      fail(std::string(operation) + ", " + text(place) + ": lane " + std::to_string(lane) +
           " of the mask is not there");
    const Thread& other = m.threads[i];
    if (i != m.running && m.states[i] != State::in_warp) return m.give_way(State::in_warp);
    if (other.mask != mask || other.place.line != place.line ||
        (other.operation != operation && std::strcmp(other.operation, operation) != 0))
      fail("lanes of a warp meet in " + std::string(operation) + ", " + text(place) + ", and " +
           other.operation + ", " + text(other.place));
    lanes[lane] = other.own;
  }
  combine(lanes);
  for (int lane = 0; lane < 32; ++lane)
    if (lanes[lane] != nullptr) m.states[first + lane] = State::ready;
  m.give_way(State::ready);
}

unsigned char* shared_memory() { return machine().shared_begin(*machine().block); }

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

#include "hopper.h"

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace shim {

namespace {

constexpr std::uint32_t kFirstAddress = 1024;  // the device keeps what is before it
constexpr std::uint64_t kMapMagic = 0x70616d726f736e74;
constexpr unsigned char kPoison = 0xff;
constexpr unsigned kRegisters = 65536;  // of a multiprocessor
constexpr int kLanes = 32, kGroupWarps = 4;
constexpr int kRows = 16;  // of a warp in a product

struct Mbarrier {
  unsigned arrivals, left;
  std::int64_t bytes = 0;  // on their way
  unsigned phase = 0;      // that is under way
  bool fenced = false;     // bulk copies may know of it

  void check() {
    if (left > 0 || bytes != 0) return;
    left = arrivals;
    ++phase;
  }
};

// The sums of a warp while products are under way that change them. What the lanes have is NaN.
struct Sums {
  std::vector<float> values;  // (kRows, columns)
  float* lanes[kLanes];
  int under_way = 0;

  static int row(int lane, int i) { return lane / 4 + i % 4 / 2 * 8; }
  static int column(int lane, int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; }
};

struct Work {
  Product product;
  Sums* sums;
  std::vector<float> registers;  // a (kRows, depth), where it comes from there
  int first_row;                 // of the warp in a
};

struct Warp {
  std::vector<std::vector<Work>> groups{{}};  // that are not done, the open one last
  std::map<float*, Sums> sums;                // by the first lane's
  bool fenced = false;
  std::size_t products = 0;  // so far
  unsigned registers = 0;
  bool changed = false;  // its registers
};

struct Block {
  std::map<const std::uint64_t*, Mbarrier> barriers;
  std::vector<Warp> warps;
  std::vector<std::vector<std::pair<std::uint64_t, std::uint64_t>>> products;  // by warpgroup
  int copies = 0;                                                              // in flight
  // Shared memory as copies and products see it: what copies have brought, and what threads have
  // written before one of them called proxy_fence().
  std::vector<unsigned char> seen;
  unsigned pool = 0;
};

// A variable with static storage: thread-local ones would be taken for shared memory.
std::vector<Block>& blocks() {
  static std::vector<Block> all(kMostBlocks);
  return all;
}

Block& own_block() { return blocks()[cluster_rank()]; }
Warp& own_warp() { return own_block().warps[static_cast<std::size_t>(warp())]; }

std::string text(Place place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash != nullptr ? slash + 1 : place.file) + ":" + std::to_string(place.line);
}

// Where a block has what the own one has at an address.
template <class T>
T* of_block(T* own, unsigned rank) {
  const auto* const begin = shared_memory_of(cluster_rank());
  return reinterpret_cast<T*>(shared_memory_of(rank) +
                              (reinterpret_cast<const unsigned char*>(own) - begin));
}

const unsigned char* pointer_to(std::uint32_t address) {
  const std::size_t at = address - kFirstAddress;
  if (address < kFirstAddress || at >= shared_size())
    fail("an operand of a product is outside of shared memory");
  return own_block().seen.data() + at;
}

std::uint32_t swizzled(std::uint32_t address, std::uint32_t chunks) {
  return address ^ ((address >> 7 & (chunks - 1)) << 4);
}

float as_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr std::uint32_t kTf32Digits = ~std::uint32_t{0x1fff};

// What the tensor cores take from a number's bits.
float number(Number type, std::uint32_t bits) {
  if (type == Number::tf32) return as_float(bits & kTf32Digits);
  if (type == Number::bfloat16) return bfloat16_to_float(static_cast<std::uint16_t>(bits));
  return __half2float(__ushort_as_half(static_cast<std::uint16_t>(bits)));
}

constexpr std::uint32_t bytes_of(Number type) { return type == Number::tf32 ? 4 : 2; }
constexpr int depth_of(Number type) { return 32 / static_cast<int>(bytes_of(type)); }

// As the copy engine rounds float32 to TF32.
void round_to_tf32(unsigned char* x) {
  std::uint32_t bits;
  std::memcpy(&bits, x, sizeof bits);
  if (!std::isfinite(as_float(bits))) return;
  bits = (bits + 0xfff + (bits >> 13 & 1)) & kTf32Digits;
  std::memcpy(x, &bits, sizeof bits);
}

// As the tensor cores round.
float truncated(double exact) {
  const auto near = static_cast<float>(exact);
  return std::fabs(static_cast<double>(near)) > std::fabs(exact) ? std::nextafter(near, 0.0f)
                                                                 : near;
}

template <Number kNumber>
float element(const Operand& from, int along, int across) {
  std::conditional_t<kNumber == Number::tf32, std::uint32_t, std::uint16_t> bits;
  std::memcpy(&bits, pointer_to(from.address(along, across)), sizeof bits);
  return number(kNumber, bits);
}

// A template, for most of the time that products take is in its loops.
template <Number kNumber>
void carry_out_of(const Work& work) {
  const Product& p = work.product;
  const std::uint32_t bytes = bytes_of(kNumber);
  constexpr int kDepth = depth_of(kNumber);
  const Operand left(p.a, p.a_depth_contiguous, bytes), right(p.b, p.b_depth_contiguous, bytes);
  double a[kRows][kDepth];
  for (int m = 0; m < kRows; ++m)
    for (int k = 0; k < kDepth; ++k) {
      const int row = work.first_row + m;
      if (!work.registers.empty())
        a[m][k] = work.registers[static_cast<std::size_t>(m * kDepth + k)];
      else
        a[m][k] =
            p.a_depth_contiguous ? element<kNumber>(left, k, row) : element<kNumber>(left, row, k);
    }
  const auto columns = static_cast<std::size_t>(p.columns);
  std::vector<double> b(static_cast<std::size_t>(kDepth) * columns), exact(columns);
  for (int k = 0; k < kDepth; ++k)
    for (int n = 0; n < p.columns; ++n)
      b[static_cast<std::size_t>(k) * columns + static_cast<std::size_t>(n)] =
          p.b_depth_contiguous ? element<kNumber>(right, k, n) : element<kNumber>(right, n, k);
  for (int m = 0; m < kRows; ++m) {
    float* const sums = work.sums->values.data() + static_cast<std::size_t>(m) * columns;
    for (std::size_t n = 0; n < columns; ++n) exact[n] = p.more ? sums[n] : 0.0;
    for (int k = 0; k < kDepth; ++k) {
      const double* const row = b.data() + static_cast<std::size_t>(k) * columns;
      for (std::size_t n = 0; n < columns; ++n) exact[n] += a[m][k] * row[n];
    }
    for (std::size_t n = 0; n < columns; ++n) sums[n] = truncated(exact[n]);
  }
  --work.sums->under_way;
}

void carry_out(const Work& work) {
  switch (work.product.number) {
    case Number::bfloat16:
      return carry_out_of<Number::bfloat16>(work);
    case Number::float16:
      return carry_out_of<Number::float16>(work);
    case Number::tf32:
      return carry_out_of<Number::tf32>(work);
  }
}

// Carries out all groups of a warp but the last, and the open one where `all`.
void carry_out_groups(Warp& warp, std::size_t left) {
  while (warp.groups.size() > left) {
    for (const Work& work : warp.groups.front()) carry_out(work);
    warp.groups.erase(warp.groups.begin());
  }
}

void deliver(Warp& warp) {
  for (auto it = warp.sums.begin(); it != warp.sums.end();) {
    const Sums& sums = it->second;
    if (sums.under_way > 0) {
      ++it;
      continue;
    }
    const auto columns = sums.values.size() / kRows;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < static_cast<int>(columns) / 2; ++i)
        sums.lanes[lane][i] = sums.values[static_cast<std::size_t>(Sums::row(lane, i)) * columns +
                                          static_cast<std::size_t>(Sums::column(lane, i))];
    it = warp.sums.erase(it);
  }
}

Sums* sums_of(Warp& warp, const Product* const lanes[kLanes]) {
  const auto [found, fresh] = warp.sums.try_emplace(lanes[0]->sums);
  Sums& sums = found->second;
  ++sums.under_way;
  if (!fresh) return &sums;
  const auto columns = static_cast<std::size_t>(lanes[0]->columns);
  sums.values.resize(kRows * columns);
  for (int lane = 0; lane < kLanes; ++lane) {
    sums.lanes[lane] = lanes[lane]->sums;
    for (int i = 0; i < static_cast<int>(columns) / 2; ++i) {
      sums.values[static_cast<std::size_t>(Sums::row(lane, i)) * columns +
                  static_cast<std::size_t>(Sums::column(lane, i))] = lanes[lane]->sums[i];
      lanes[lane]->sums[i] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  return &sums;
}

// a as the lanes have it in registers.
std::vector<float> registers_of(const Product* const lanes[kLanes]) {
  std::vector<float> a;
  if (lanes[0]->registers == nullptr) return a;
  // A word has two numbers that are side by side, or one.
  const Number type = lanes[0]->number;
  const int depth = depth_of(type), each = depth / 8, bits = 32 / each;
  a.resize(static_cast<std::size_t>(kRows * depth));
  for (int lane = 0; lane < kLanes; ++lane)
    for (int word = 0; word < 4; ++word)
      for (int i = 0; i < each; ++i) {
        const int row = lane / 4 + word % 2 * 8, k = (word / 2 * 4 + lane % 4) * each + i;
        a[static_cast<std::size_t>(row * depth + k)] =
            number(type, lanes[lane]->registers[word] >> (bits * i));
      }
  return a;
}

void begin_product(void* const all[kLanes]) {
  const Product* lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<const Product*>(all[lane]);
  const Product& first = *lanes[0];
  for (const Product* lane : lanes)
    if (lane->a != first.a || lane->b != first.b || lane->more != first.more)
      fail("lanes ask for different products");
  Warp& warp = own_warp();
  if (!warp.fenced) fail("a product without a wgmma fence since the warp has waited or begun");
  auto& group = own_block().products[static_cast<std::size_t>(shim::warp() / kGroupWarps)];
  if (warp.products == group.size()) group.emplace_back(first.a, first.b);
  if (group[warp.products] != std::pair(first.a, first.b))
    fail("the warps of a warpgroup ask for different products");
  ++warp.products;
  warp.groups.back().push_back(
      {first, sums_of(warp, lanes), registers_of(lanes), shim::warp() % kGroupWarps * kRows});
  // In order, and this one among them.
  if (!soon()) return;
  for (auto& before : warp.groups) {
    for (const Work& work : before) carry_out(work);
    before.clear();
  }
}

const std::uint64_t* no_barrier_fails(const std::uint64_t* barrier, const char* what, Place place) {
  if (own_block().barriers.count(barrier) == 0)
    fail(std::string(what) + ", " + text(place) + ": the barrier is not initialised");
  return barrier;
}

}  // namespace

std::uint32_t shared_address(const void* pointer) {
  const auto* const at = static_cast<const unsigned char*>(pointer);
  const auto* const begin = shared_memory();
  if (at < begin || at >= begin + shared_size()) fail("an address that is not of shared memory");
  return (kFirstAddress + static_cast<std::uint32_t>(at - begin)) | cluster_rank() << 24;
}

void mbarrier_init(std::uint64_t* barrier, unsigned arrivals, Place place) {
  if (reinterpret_cast<std::uintptr_t>(barrier) % 8 != 0 || arrivals == 0 || arrivals >= 1u << 20)
    fail("mbarrier_init, " + text(place) + ": no barrier can be so");
  shared_address(barrier);
  own_block().barriers[barrier] = {arrivals, arrivals};
}

void mbarrier_init_fence() {
  for (auto& [address, barrier] : own_block().barriers) barrier.fenced = true;
}

void proxy_fence() { std::memcpy(own_block().seen.data(), shared_memory(), shared_size()); }

void mbarrier_arrive(std::uint64_t* barrier, unsigned bytes, Place place) {
  Mbarrier& own = own_block().barriers[no_barrier_fails(barrier, "mbarrier_arrive", place)];
  if (own.left == 0)
    fail("mbarrier_arrive, " + text(place) + ": more arrivals than the barrier counts");
  own.bytes += bytes;
  --own.left;
  own.check();
  perhaps_give_way();
}

void mbarrier_wait(std::uint64_t* barrier, unsigned parity, Place place) {
  const Mbarrier* own = &own_block().barriers[no_barrier_fails(barrier, "mbarrier_wait", place)];
  if (parity > 1) fail("mbarrier_wait, " + text(place) + ": a parity is 0 or 1");
  wait_until("a phase of an mbarrier", [own, parity] { return (own->phase & 1) != parity; }, place);
  perhaps_hold_up(shared_address(barrier) + own->phase);
}

void bulk_copy(void* to, const TensorMap& map, std::uint64_t* barrier, const int (&at)[kMapRank],
               unsigned wanted, Place place) {
  const std::string what = "bulk_copy, " + text(place) + ": ";
  if (map.magic != kMapMagic) fail(what + "that is no tensor map");
  if (shared_address(to) % 128 != 0) fail(what + "to an address that is not a multiple of 128");
  const std::uint32_t line = map.box[0] * map.element;
  const std::uint32_t bytes = line * map.box[1] * map.box[2];
  shared_address(static_cast<unsigned char*>(to) + bytes - 1);
  for (unsigned rank = 0; rank < kMostBlocks; ++rank) {
    if ((wanted >> rank & 1) == 0) continue;
    if (rank >= cluster_size()) fail(what + "the cluster has no block " + std::to_string(rank));
    Block& block = blocks()[rank];
    const std::uint64_t* const there = of_block(barrier, rank);
    const auto found = block.barriers.find(there);
    if (found == block.barriers.end()) fail(what + "the barrier is not initialised");
    if (!found->second.fenced) fail(what + "there was no fence since the barrier was initialised");
    unsigned char* const target = static_cast<unsigned char*>(of_block(to, rank));
    unsigned char* const seen = block.seen.data() + (target - shared_memory_of(rank));
    std::memset(target, kPoison, bytes);
    std::memset(seen, kPoison, bytes);
    ++block.copies;
    const std::uint32_t address = shared_address(to);
    const std::array<int, kMapRank> from{at[0], at[1], at[2]};
    Mbarrier* const full = &found->second;
    later([=, &block] {
      const auto inside = [&](int dimension, std::int64_t i) {
        return i >= 0 && i < static_cast<std::int64_t>(map.size[dimension]);
      };
      std::uint32_t lines = 0;
      for (std::uint32_t z = 0; z < map.box[2]; ++z)
        for (std::uint32_t y = 0; y < map.box[1]; ++y, ++lines)
          for (std::uint32_t x = 0; x < map.box[0]; ++x) {
            const std::int64_t place[3] = {std::int64_t{from[0]} + x, std::int64_t{from[1]} + y,
                                           std::int64_t{from[2]} + z};
            const std::uint32_t plain = address + lines * line + x * map.element;
            const std::uint32_t chunks = map.swizzle == 0 ? 1 : map.swizzle / 16;
            const std::uint32_t at = swizzled(plain, chunks) - address;
            unsigned char* const cell = target + at;
            if (inside(0, place[0]) && inside(1, place[1]) && inside(2, place[2])) {
              const unsigned char* source = map.data + place[0] * map.element;
              for (int i = 1; i < kMapRank; ++i)
                source += place[i] * static_cast<std::int64_t>(map.stride[i]);
              std::memcpy(cell, source, map.element);
              if (map.rounds) round_to_tf32(cell);
            } else {
              std::memset(cell, 0, map.element);
            }
            std::memcpy(seen + at, cell, map.element);
          }
      --block.copies;
      full->bytes -= bytes;
      full->check();
    });
  }
  perhaps_give_way();
}

Operand::Operand(std::uint64_t descriptor, bool depth_contiguous, std::uint32_t bytes)
    : begin_(static_cast<std::uint32_t>(descriptor & 0x3fff) << 4),
      leading_(static_cast<std::uint32_t>(descriptor >> 16 & 0x3fff) << 4),
      stride_(static_cast<std::uint32_t>(descriptor >> 32 & 0x3fff) << 4),
      bytes_(bytes),
      depth_contiguous_(depth_contiguous) {
  constexpr std::uint32_t kChunks[4] = {1, 8, 4, 2};  // of 16 bytes in a line
  chunks_ = kChunks[descriptor >> 62];
  constexpr std::uint64_t kFields = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 3ull << 62;
  if ((descriptor & ~kFields) != 0)
    fail("a matrix descriptor with bits that have no meaning, or with a base offset");
}

std::uint32_t Operand::address(int along, int across) const {
  const auto i = static_cast<std::uint32_t>(along), j = static_cast<std::uint32_t>(across);
  const std::uint32_t pattern = j % 8 * chunks_ * 16;  // within eight lines
  const std::uint32_t line = chunks_ * 16 / bytes_;    // numbers
  std::uint32_t plain = begin_ + pattern + i % line * bytes_;
  const std::uint32_t next = i / line;
  // Without a swizzle the two strides of what is contiguous along columns change places.
  const bool swap = chunks_ == 1 && !depth_contiguous_;
  if (depth_contiguous_ && chunks_ > 1) {
    plain = begin_ + pattern + i * bytes_ + j / 8 * stride_;
  } else {
    plain += next * (swap ? stride_ : leading_) + j / 8 * (swap ? leading_ : stride_);
  }
  return swizzled(plain, chunks_);
}

void wgmma(const Product& product, Place place) {
  Product own = product;
  meet("wgmma", 0xffffffffu, &own, begin_product, place);
}

void wgmma_fence(Place place) {
  int lane = 0;
  meet("wgmma_fence", 0xffffffffu, &lane, [](void* const*) { own_warp().fenced = true; }, place);
}

void wgmma_commit(Place place) {
  int lane = 0;
  meet(
      "wgmma_commit", 0xffffffffu, &lane, [](void* const*) { own_warp().groups.emplace_back(); },
      place);
}

void wgmma_wait(unsigned groups_left, Place place) {
  meet(
      "wgmma_wait", 0xffffffffu, &groups_left,
      [](void* const lanes[kLanes]) {
        Warp& warp = own_warp();
        // The open group does not count: nothing waits for it.
        carry_out_groups(warp, *static_cast<const unsigned*>(lanes[0]) + 1);
        deliver(warp);
        warp.fenced = false;
      },
      place);
}

void set_registers(unsigned registers, bool gives, Place place) {
  const std::string what = "registers of a warpgroup, " + text(place) + ": ";
  if (registers % 8 != 0 || registers < 24 || registers > 256)
    fail(what + "their number is a multiple of 8 from 24 to 256");
  Block& block = own_block();
  Warp& warp = own_warp();
  __syncwarp(0xffffffffu, place.line, place.file);
  if (lane() == 0) {
    if (gives ? registers > warp.registers : registers < warp.registers)
      fail(what + std::to_string(registers) + ", where there are " +
           std::to_string(warp.registers));
    const auto fit = [&block, &warp, registers] {
      unsigned all = 0;
      for (const Warp& other : block.warps)
        all += kLanes * (&other == &warp ? registers : other.registers);
      return all <= block.pool;
    };
    wait_until("registers", fit, place);
    warp.registers = registers;
    warp.changed = true;
  }
  __syncwarp(0xffffffffu, place.line, place.file);
}

void begin_hopper(unsigned rank, unsigned threads) {
  Block& block = blocks()[rank];
  block = {};
  block.warps.resize((threads + kLanes - 1) / kLanes);
  block.products.resize(block.warps.size() / kGroupWarps + 1);
  block.seen.assign(shared_size(), kPoison);
  const unsigned each = std::min(255u, kRegisters / std::max(threads, 1u)) / 8 * 8;
  for (Warp& warp : block.warps) warp.registers = each;
  block.pool = each * kLanes * static_cast<unsigned>(block.warps.size());
}

void end_hopper(unsigned rank) {
  const Block& block = blocks()[rank];
  if (block.copies > 0) throw std::runtime_error("the block ends before its bulk copies have come");
  for (std::size_t i = 0; i + kGroupWarps <= block.warps.size(); i += kGroupWarps)
    for (std::size_t j = 1; j < kGroupWarps; ++j)
      if (block.warps[i].changed != block.warps[i + j].changed)
        throw std::runtime_error("not all warps of a warpgroup change their registers");
}

void end_of_thread() {
  for (const auto& group : own_warp().groups)
    if (!group.empty()) fail("the thread ends before it has waited for its products");
  if (!own_warp().sums.empty()) fail("the thread ends before it has waited for its products");
}

}  // namespace shim

// ---- tensor maps: what the driver's documentation asks for ----

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* data, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* every,
                                CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  shim::TensorMap told{};
  static_assert(sizeof told <= sizeof *map, "a map has room for it");
  constexpr std::uint32_t kLines[4] = {0, 32, 64, 128};
  told.magic = shim::kMapMagic;
  told.data = static_cast<const unsigned char*>(data);
  told.rounds = type == CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;
  told.element = told.rounds || type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2;
  told.swizzle = kLines[swizzle];
  bool right = rank == shim::kMapRank && type != CU_TENSOR_MAP_DATA_TYPE_FLOAT64 &&
               reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
  for (int i = 0; right && i < shim::kMapRank; ++i) {
    told.size[i] = sizes[i];
    told.stride[i] = i == 0 ? told.element : strides[i - 1];
    told.box[i] = box[i];
    right = sizes[i] >= 1 && sizes[i] <= std::uint64_t{1} << 32 && box[i] >= 1 && box[i] <= 256 &&
            every[i] == 1;
    if (i > 0)
      right = right && told.stride[i] % 16 == 0 && told.stride[i] < std::uint64_t{1} << 40 &&
              told.stride[i] >= told.size[i - 1] * told.stride[i - 1] &&
              (i == 1 || told.stride[i] % told.stride[i - 1] == 0);
  }
  const std::uint32_t line = told.box[0] * told.element;
  if (!right || line % 16 != 0 || (told.swizzle > 0 && line > told.swizzle))
    return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(map, &told, sizeof told);
  return CUDA_SUCCESS;
}

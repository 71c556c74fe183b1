#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace fbp {

namespace portable {
Kernels kernels();
}
#if defined(FBP_X86)
namespace avx2 {
Kernels kernels();
}
namespace avx512 {
Kernels kernels();
}
namespace avx512_bf16 {
Kernels kernels();
}
#endif

namespace {

// Best first. Only those are asked for their kernels that this processor runs.
std::vector<Kernels> found() {
  std::vector<Kernels> result;
#if defined(FBP_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) result.push_back(avx512_bf16::kernels());
  if (avx512) result.push_back(avx512::kernels());
  if (avx2) result.push_back(avx2::kernels());
#endif
  result.push_back(portable::kernels());
  return result;
}

// Looked for once, since every call of an operator asks; never freed, since a thread may call while
// the process ends.
const std::vector<Kernels>& runnable() {
  static const auto& kernels = *new std::vector<Kernels>(found());
  return kernels;
}

}  // namespace

Kernels selected_kernels() {
  const std::vector<Kernels>& choices = runnable();
  const char* const wanted = std::getenv("FBP_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return choices.front();
  for (const Kernels& kernels : choices)
    if (std::string(wanted) == kernels.name) return kernels;
  throw std::runtime_error("the environment variable FBP_CPU_ISA is '" + std::string(wanted) +
                           "', this processor runs " + runnable_isas());
}

std::string runnable_isas() {
  std::string names;
  for (const Kernels& kernels : runnable())
    names += (names.empty() ? "" : ",") + std::string(kernels.name);
  return names;
}

}  // namespace fbp

// Which build of the kernels runs.

#pragma once

#include <string>

#include "problem.h"

namespace fbp {

// The best that this processor runs, or what the environment variable FBP_CPU_ISA names; throws
// std::runtime_error where that is unknown or does not run here.
Kernels selected_kernels();

// Names of all that run here, best first, separated by commas.
std::string runnable_isas();

}  // namespace fbp

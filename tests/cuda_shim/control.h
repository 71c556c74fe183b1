// How tests set the stand-in of the runtime up, and its graphs.

#pragma once

#include <functional>
#include <vector>

namespace shim {

// Makes a device of these figures the current one. Each has a number of its own, and attributes of
// kernels of its own.
void use_device(int multiprocessors, int major, int shared_bytes);

// The static shared memory of a kernel, none where nothing is said.
void set_static_bytes(const void* kernel, int bytes);

// Refuses a launch: the next one where `number` is 0.
void fail_launch(int number);

using Work = std::function<void()>;
using Graph = std::vector<Work>;

// What comes from now on is not run but noted.
void begin_capture();
bool capturing();

// The number of what was noted.
int end_capture();
const Graph& graph(int number);

}  // namespace shim

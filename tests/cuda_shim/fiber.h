// Stacks to switch between. Hand-written on x86-64, where the C library's switch spends most of its
// time in system calls.

#pragma once

#include <cstddef>

#if defined(__x86_64__)

namespace shim {

struct Fiber {
  void* stack_pointer = nullptr;
};

extern "C" void fbp_shim_switch(void** save, void* to);

inline void switch_to(Fiber& from, Fiber& to) {
  fbp_shim_switch(&from.stack_pointer, to.stack_pointer);
}

// What runs on the stack first; it never returns.
inline void prepare(Fiber& fiber, unsigned char* stack, std::size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // where a return address of `entry` would be: aligns the stack as a call does
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // registers
  fiber.stack_pointer = top;
}

}  // namespace shim

#else

#include <ucontext.h>

namespace shim {

struct Fiber {
  ucontext_t context;
};

inline void switch_to(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

inline void prepare(Fiber& fiber, unsigned char* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

}  // namespace shim

#endif

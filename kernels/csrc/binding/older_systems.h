// For what is compiled on newer systems than those that it shall load on; see older_systems.cpp.

#pragma once

#include <features.h>

// glibc 2.34 took these over from libdl, under a new version. The old one is there still, and on
// older systems it is libdl's, which whoever has loaded PyTorch has loaded, too.
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
#if defined(__x86_64__)
#define FBP_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FBP_FIRST_GLIBC "GLIBC_2.17"
#endif
#endif

#ifdef FBP_FIRST_GLIBC
__asm__(".symver dlopen, dlopen@" FBP_FIRST_GLIBC);
__asm__(".symver dlsym, dlsym@" FBP_FIRST_GLIBC);
#endif

// Lets the library load on systems that are older than the one it is built on. Headers of newer
// ones use a few symbols of libc and libstdc++ in passing, which these have for that; defined here,
// they are taken from here. What is asked for then is at most what manylinux_2_28 has, the baseline
// of PyTorch's own wheels.

#if defined(__linux__) && __has_include(<gnu/libc-version.h>)  // glibc, and with it GCC's library

#include <sstream>

// Since glibc 2.32 shared pointers count without atomics while this is true.
extern "C" {
char __libc_single_threaded = 0;
}

// Functions of their own since GCC 9; before, they were inlined.
template std::ostringstream::basic_ostringstream();
template std::stringstream::basic_stringstream();

#endif

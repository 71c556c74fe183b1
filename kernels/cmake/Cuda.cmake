# Builds _native_cuda.so: the CUDA kernels, and their binding.
#
# FBP_CUDA says whether: ON, OFF, or AUTO, which is where torch has CUDA and a CUDA compiler is found. Nobody with a
# torch for the CPU waits for nvcc. CMAKE_CUDA_ARCHITECTURES says for which GPUs; the default is for all of compute
# capability 8.0 and later.

set(FBP_CUDA
    AUTO
    CACHE STRING "Whether the CUDA kernels are built: ON, OFF or AUTO")
set_property(CACHE FBP_CUDA PROPERTY STRINGS AUTO ON OFF)

function(install_without_cuda reason)
  message(STATUS "fbp_kernels is built without its CUDA kernels: ${reason}")
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/_native_cuda_missing.txt "${reason}\n")
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/_native_cuda_missing.txt DESTINATION fbp_kernels)
endfunction()

if(NOT FBP_CUDA STREQUAL "AUTO" AND NOT FBP_CUDA)
  install_without_cuda("it was built with FBP_CUDA=${FBP_CUDA}")
  return()
endif()
if(FBP_CUDA STREQUAL "AUTO" AND NOT Torch_CUDA)
  install_without_cuda("the torch that it was built with has no CUDA (FBP_CUDA=ON builds them all the same)")
  return()
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(FBP_CUDA STREQUAL "AUTO")
    install_without_cuda("no CUDA compiler was found when the package was built")
    return()
  endif()
  message(FATAL_ERROR "FBP_CUDA is ${FBP_CUDA}, but no CUDA compiler was found")
endif()

# 90a: with instructions that only Hopper has. The last one also as PTX, for what comes after it.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 100)
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

# Without torch's headers: what a GPU runs does not depend on which torch there is.
file(GLOB cuda_kernels CONFIGURE_DEPENDS ${sources}/cuda/*.cu ${sources}/cuda/*.cpp)
add_library(kernels_cuda OBJECT ${cuda_kernels})
target_include_directories(kernels_cuda PRIVATE ${sources})
target_compile_options(kernels_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Werror;all-warnings>")

add_library(
  _native_cuda MODULE
  $<TARGET_OBJECTS:kernels_cuda> ${sources}/binding/cuda.cpp
  ${sources}/binding/bilinear.cpp ${sources}/binding/attention_pool.cpp
  ${sources}/binding/local_response_norm.cpp ${sources}/binding/batch_norm.cpp
  ${sources}/binding/power_normalize.cpp ${sources}/binding/older_systems.cpp)
target_compile_definitions(_native_cuda PRIVATE FBP_KEY=CUDA)
# One file serves every driver that is new enough, whatever else of CUDA is or is not installed.
set_target_properties(_native_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
add_extension(_native_cuda)

# Finds what the extension needs of torch: headers and libtorch_cpu, from the Python that runs the build.
#
# torch ships a CMake package too, but where torch has CUDA that one demands a CUDA toolkit, also from an extension
# without device code, and it adds compiler flags that the stable ABI has no use for.
#
# Defines the target Torch::stable, Torch_VERSION, Torch_CUDA (whether it has CUDA), Torch_TARGET_VERSION (the version
# that was asked for, as its headers want it told) and, where torch is not found, Torch_NOT_FOUND_MESSAGE.
#
# Headers of another version can take the place of those that lie beside it: -DTorch_INCLUDE_DIR=...

find_package(Python COMPONENTS Interpreter QUIET)
execute_process(
  COMMAND
    ${Python_EXECUTABLE} -c
    "import os, torch; root = os.path.dirname(torch.__file__); \
print(torch.__version__.split('+')[0], root, int(torch.compiled_with_cxx11_abi()), \
int(torch.version.cuda is not None), sep=';')"
  OUTPUT_VARIABLE _torch_facts
  ERROR_VARIABLE _torch_error
  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE _torch_status)

math(EXPR Torch_TARGET_VERSION
     "(${Torch_FIND_VERSION_MAJOR} << 56) | (${Torch_FIND_VERSION_MINOR} << 48)"
     OUTPUT_FORMAT HEXADECIMAL)
if(_torch_status EQUAL 0)
  list(GET _torch_facts 0 Torch_VERSION)
  list(GET _torch_facts 1 _torch_root)
  list(GET _torch_facts 2 _torch_cxx11_abi)
  list(GET _torch_facts 3 Torch_CUDA)
  file(TO_CMAKE_PATH "${_torch_root}" _torch_root)
  find_path(Torch_INCLUDE_DIR torch/csrc/stable/library.h PATHS ${_torch_root}/include
                                                                NO_DEFAULT_PATH)
  find_library(Torch_LIBRARY torch_cpu PATHS ${_torch_root}/lib NO_DEFAULT_PATH)
  if(Torch_VERSION VERSION_LESS Torch_FIND_VERSION)
    set(Torch_NOT_FOUND_MESSAGE
        "torch was ${Torch_VERSION} when the package was built, ${Torch_FIND_VERSION} or later is needed")
  else()
    set(Torch_NOT_FOUND_MESSAGE
        "headers or libtorch_cpu were missing in ${_torch_root} when the package was built")
  endif()
else()
  string(REGEX REPLACE ".*\n" "" _torch_error "${_torch_error}")
  set(Torch_NOT_FOUND_MESSAGE
      "torch could not be imported when the package was built: ${_torch_error}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  Torch
  REQUIRED_VARS Torch_LIBRARY Torch_INCLUDE_DIR
  VERSION_VAR Torch_VERSION)

if(Torch_FOUND AND NOT TARGET Torch::stable)
  add_library(Torch::stable SHARED IMPORTED)
  set_target_properties(
    Torch::stable
    PROPERTIES IMPORTED_LOCATION ${Torch_LIBRARY}
               INTERFACE_INCLUDE_DIRECTORIES ${Torch_INCLUDE_DIR}
               INTERFACE_COMPILE_DEFINITIONS _GLIBCXX_USE_CXX11_ABI=${_torch_cxx11_abi})
endif()

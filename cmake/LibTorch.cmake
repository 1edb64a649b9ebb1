# LibTorch from a PyTorch wheel: a target lineal_torch made from the folder itself, so that a CUDA build of PyTorch needs
# no CUDA toolkit on the machine. -DLINEAL_TORCH=PATH names the folder; else the private environment or python3 tells.
if(NOT EXISTS "${LINEAL_TORCH}/include/ATen/ATen.h")
  foreach(python ${PROJECT_SOURCE_DIR}/.venv/bin/python python3)
    execute_process(
      COMMAND ${python} -c "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))"
      OUTPUT_VARIABLE LINEAL_TORCH OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE missing)
    if(missing EQUAL 0)
      break()
    endif()
    set(LINEAL_TORCH "")
  endforeach()
endif()
if(NOT EXISTS "${LINEAL_TORCH}/include/ATen/ATen.h")
  message(FATAL_ERROR "LibTorch: no PyTorch 2.11 to 2.13 found; run 'make setup', or give -DLINEAL_TORCH=<folder of the torch package>")
endif()
set(LINEAL_TORCH ${LINEAL_TORCH} CACHE PATH "folder of the torch package" FORCE)
file(READ ${LINEAL_TORCH}/version.py torch_version)
string(REGEX MATCH "__version__ = '([0-9]+\\.[0-9]+)" torch_version "${torch_version}")
set(torch_version ${CMAKE_MATCH_1})
if(torch_version VERSION_LESS 2.11 OR torch_version VERSION_GREATER 2.13)
  message(FATAL_ERROR "LibTorch: PyTorch ${torch_version} in ${LINEAL_TORCH}, expected 2.11 to 2.13")
endif()
message(STATUS "LibTorch: PyTorch ${torch_version} in ${LINEAL_TORCH}")

add_library(lineal_torch INTERFACE IMPORTED GLOBAL)
target_include_directories(lineal_torch SYSTEM INTERFACE
  ${LINEAL_TORCH}/include ${LINEAL_TORCH}/include/torch/csrc/api/include)
target_link_directories(lineal_torch INTERFACE ${LINEAL_TORCH}/lib)
target_link_options(lineal_torch INTERFACE -Wl,-rpath,${LINEAL_TORCH}/lib)
target_link_libraries(lineal_torch INTERFACE torch torch_cpu c10)
if(EXISTS ${LINEAL_TORCH}/lib/libtorch_cuda.so)
  # Nothing of ours names a symbol of these; they register the CUDA backend when loaded.
  target_link_libraries(lineal_torch INTERFACE -Wl,--no-as-needed torch_cuda c10_cuda -Wl,--as-needed)
endif()

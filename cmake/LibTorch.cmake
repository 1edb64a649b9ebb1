# LibTorch from a PyTorch wheel: a target lineal_torch made from the folder itself, so that a CUDA build of PyTorch needs
# no CUDA toolkit on the machine. -DLINEAL_TORCH=PATH names the folder; else the first that fits of the one found before,
# the private environment's and python3's, as in tools/setup.sh.
if(LINEAL_TORCH)
  set(candidates ${LINEAL_TORCH})
else()
  set(candidates ${LINEAL_TORCH_FOUND} ${PROJECT_SOURCE_DIR}/.venv/bin/python python3)
endif()
execute_process(COMMAND ${CMAKE_CURRENT_LIST_DIR}/find_torch.sh ${candidates}
                OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE missing)
if(NOT missing EQUAL 0)
  list(JOIN candidates ", " candidates)
  message(FATAL_ERROR "LibTorch: no PyTorch 2.11 to 2.13 in ${candidates}; run 'make setup', or give "
                      "-DLINEAL_TORCH=<folder of the torch package>")
endif()
if(NOT LINEAL_TORCH)
  set(LINEAL_TORCH_FOUND ${found} CACHE INTERNAL "folder of the torch package")
  set(LINEAL_TORCH ${found})
endif()
message(STATUS "LibTorch: ${LINEAL_TORCH}")

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

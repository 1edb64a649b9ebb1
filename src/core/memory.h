// The machine's memory, and errors that say there is not enough of it.
#pragma once

#include <cstdint>
#include <exception>

namespace lineal {

/// Bytes of memory this machine has.
int64_t machine_memory();

/// For a whole program, before its first tensor: memory that was freed stays with the process. Each step of training
/// would otherwise ask the kernel for every large tensor anew, page by page: a tenth of its time. The environment
/// variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ go before it.
void keep_freed_memory();

/// Whether `error` is an allocation that failed: std::bad_alloc, or what LibTorch throws for one, on the CPU a plain
/// c10::Error.
bool is_out_of_memory(const std::exception& error);

}  // namespace lineal

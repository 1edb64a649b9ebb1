// The machine's memory, and errors that say there is not enough of it.
#pragma once

#include <cstdint>
#include <exception>

namespace lineal {

/// Bytes of memory this machine has.
int64_t machine_memory();

/// Whether `error` is an allocation that failed: std::bad_alloc, or what LibTorch throws for one, on the CPU a plain
/// c10::Error.
bool is_out_of_memory(const std::exception& error);

}  // namespace lineal

// The machine's memory, and errors that say there is not enough of it.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace lineal {

/// Bytes of memory this machine has.
int64_t machine_memory();

/// A number such as that of the line "VmHWM:   123 kB" in a file of /proc, in bytes; 0 when it is not there.
int64_t proc_bytes(const char* path, const std::string& key);

/// For a whole program: allocations beyond what the machine has free now, nine tenths of its memory and what it can
/// swap, fail instead of waking the kernel's killer. A narrower limit that was set before stays. Returns those free
/// bytes; 0 where the kernel does not tell, and nothing is limited.
int64_t limit_memory();

/// Moves the limit that limit_memory set, if it did, up by `bytes`, or down when they are negative: maps of files count
/// towards it though they need no memory.
void widen_memory_limit(int64_t bytes);

/// For a whole program, before its first tensor: memory that was freed stays with the process. Each step of training
/// would otherwise ask the kernel for every large tensor anew, page by page: a tenth of its time. The environment
/// variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ go before it.
void keep_freed_memory();

/// Whether `error` is an allocation that failed: std::bad_alloc, or what LibTorch throws for one, on the CPU a plain
/// c10::Error.
bool is_out_of_memory(const std::exception& error);

}  // namespace lineal

// Large pages for large results.
#pragma once

#include <cstdint>

namespace lineal::kernels::cpu {

/// Asks the system to back fresh memory that a kernel is about to fill with large pages: a page fault for every 4 KiB
/// cost TTT-Linear's training step a third of its time. Does nothing for a few megabytes or where there are none.
void huge_pages(void* data, int64_t bytes);

}  // namespace lineal::kernels::cpu

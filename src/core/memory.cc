#include "core/memory.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <new>
#include <string>

namespace lineal {

int64_t machine_memory() { return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE); }

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  return torch != nullptr && torch->msg().find("DefaultCPUAllocator: ") != std::string::npos;
}

}  // namespace lineal

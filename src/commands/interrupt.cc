#include "commands/interrupt.h"

#include <unistd.h>

#include <csignal>
#include <cstring>

namespace lineal {
namespace {

volatile std::sig_atomic_t caught = 0;
const char* at_interrupt = "";

void handle(int) {
  if (caught) ::_exit(kInterruptedCode);
  caught = 1;
  (void)!::write(STDERR_FILENO, at_interrupt, std::strlen(at_interrupt));
}

}  // namespace

void catch_interrupts(const char* message) {
  at_interrupt = message;
  std::signal(SIGINT, handle);
  std::signal(SIGTERM, handle);
}

bool interrupted() { return caught != 0; }

}  // namespace lineal

// Ctrl-C as a wish to stop: the work in hand is finished and saved.
#pragma once

namespace lineal {

/// From now on the first SIGINT or SIGTERM writes `message` (which must outlive the process's work) to standard error
/// and makes interrupted() true; a second ends the program with code 130.
void catch_interrupts(const char* message);
bool interrupted();

/// The exit code of a program that was interrupted and has saved its work.
constexpr int kInterruptedCode = 130;

}  // namespace lineal

// What a user's mistake must end with: a lineal::Error of one line.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "core/error.h"

namespace lineal {

/// EXPECT_TRUE(throws_error([&] { ... }, {"part", "another"})): an Error, one line of bounded length, with every part.
inline ::testing::AssertionResult throws_error(const std::function<void()>& f, const std::vector<std::string>& parts) {
  std::string what;
  try {
    f();
    return ::testing::AssertionFailure() << "no error, expected one with: " << parts.front();
  } catch (const Error& error) {
    what = error.what();
  }
  for (const auto& part : parts) {
    if (what.find(part) == std::string::npos) {
      return ::testing::AssertionFailure() << "error: " << what << "\nexpected in it: " << part;
    }
  }
  if (what.find('\n') != std::string::npos) return ::testing::AssertionFailure() << "several lines: " << what;
  if (what.size() > 600) return ::testing::AssertionFailure() << what.size() << " characters: " << what;
  return ::testing::AssertionSuccess() << what;
}

}  // namespace lineal

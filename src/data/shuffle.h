// Random orders that are the same on every machine: the standard library's shuffle and distributions are not.
#pragma once

#include <cstdint>
#include <random>
#include <string_view>
#include <vector>

namespace lineal {

/// Scrambles a and b into one number (splitmix64's finaliser, Steele et al. 2014).
inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t z = a * 0x9E3779B97F4A7C15u + b + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/// FNV-1a, continued from `hash`.
inline uint64_t hash_bytes(std::string_view bytes, uint64_t hash = 0xCBF29CE484222325u) {
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3u;
  return hash;
}

/// Uniform in [0, n), n >= 1.
inline int64_t below(int64_t n, std::mt19937_64& random) {
  const auto range = static_cast<uint64_t>(n);
  const uint64_t unfair = (0 - range) % range;  // 2^64 mod n
  uint64_t draw = random();
  while (draw < unfair) draw = random();
  return static_cast<int64_t>(draw % range);
}

/// 0 ... n - 1 in random order (Fisher and Yates).
inline std::vector<int64_t> permutation(int64_t n, std::mt19937_64& random) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  for (int64_t i = n - 1; i > 0; --i) std::swap(order[i], order[below(i + 1, random)]);
  return order;
}

}  // namespace lineal

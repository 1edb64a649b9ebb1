// How softmax attention knows where tokens are: queries and keys turned by their own places, or scores that depend on
// both places.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "core/config.h"

namespace lineal {

using at::Tensor;

/// The fields of every method; each reads its own.
struct PositionConfig : Config {
  std::string position = "rope";
  double rope_theta = 10000;
  double factor = 1;
  int64_t original_length = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double ntk_constant = 1;
  int64_t rerope_window = 0;
  int64_t rotary_dims = 0;
  double attention_factor = 0;
  bool truncate = true;

  std::vector<Field> fields() override;
};

class Position {
 public:
  virtual ~Position() = default;

  /// Queries, and keys before they are cached, x [B, T, H, K] at places int64 [B, T] of their documents. As they are
  /// unless overridden.
  virtual Tensor turn(const Tensor& x, const Tensor& place) const;

  /// Whether scores depend on places otherwise than through turn().
  virtual bool by_pair() const { return false; }
  /// [B, H, n, m], K^{-1/2} q . k unless overridden: queries q [B, n, H, K] at places int64 [B, n], keys k
  /// [B, m, H_kv, K] at places [B, m], both as turn() left them. Numbers for keys later than their query are of no use.
  virtual Tensor scores(const Tensor& q, const Tensor& k, const Tensor& q_place, const Tensor& k_place) const;
};

/// A line of the table: how a method is called and made.
struct PositionSpec {
  static constexpr const char* kKind = "position";
  std::string name;
  /// One line for `lineal list`, with the paper.
  std::string help;
  /// For heads of size K, H of them. Throws Error for a field that the method cannot do with.
  std::unique_ptr<Position> (*make)(const PositionConfig& config, int64_t K, int64_t H);
};

/// The method of that name; rope_theta 0 turns rope into none. With rotary_dims R it sees the first R numbers of a head
/// as a head of its own, the others have no place.
std::unique_ptr<Position> make_position(const PositionConfig& config, int64_t K, int64_t H);

/// Throws "position NAME: FIELD is VALUE, expected WHAT" unless `holds`.
void require(bool holds, const PositionConfig& config, const std::string& field, const std::string& what);

/// K^{-1/2} q . k, [B, H, n, m], of q [B, n, H, K] and k [B, m, H_kv, K]; query head h reads key head floor(h H_kv /
/// H).
Tensor dot_scores(const Tensor& q, const Tensor& k);

/// p [B, H, n, m] over v [B, m, H_kv, V] -> [B, n, H, V].
Tensor weighted_sum(const Tensor& p, const Tensor& v);

}  // namespace lineal

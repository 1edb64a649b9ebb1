#include "mixers/chunks.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace lineal {
namespace {

/// mask [B] with trailing dimensions of 1, to multiply S [B, ...] by.
Tensor by_row(const Tensor& mask, const Tensor& S) {
  std::vector<int64_t> shape(static_cast<size_t>(S.dim()), 1);
  shape[0] = S.size(0);
  return mask.reshape(shape);
}

}  // namespace

Chunks::Chunks(const Tensor& like, int64_t chunk_size, const Segments& segments)
    : T_(like.size(1)), C_(std::min(chunk_size, T_)), n_((T_ + C_ - 1) / C_) {
  const int64_t B = like.size(0);
  inside_ = at::ones({1, 1, 1, C_, C_}, like.options().requires_grad(false)).tril();
  strict_ = inside_.tril(-1);
  if (segments.none()) return;
  const Tensor padding = at::zeros({B, n_ * C_ - T_}, segments.starts.options());
  const Tensor starts = at::cat({segments.starts, padding}, 1).reshape({B, n_, C_});
  const Tensor document = starts.cumsum(2);  // [B, n, C], of those that start in the chunk; 0: began before it
  const auto type = like.scalar_type();
  const Tensor same = (document.unsqueeze(3) == document.unsqueeze(2)).to(type).unsqueeze(1);  // [B, 1, n, C, C]
  inside_ = same * inside_;
  strict_ = same * strict_;
  const Tensor last = document.slice(2, C_ - 1);  // [B, n, 1]
  before_ = (document == 0).to(type).unsqueeze(1).unsqueeze(4);
  after_ = (document == last).to(type).unsqueeze(1).unsqueeze(4);
  passes_ = (last == 0).to(type).squeeze(2);
}

Tensor Chunks::split(const Tensor& x) const {
  const int64_t B = x.size(0), H = x.size(2), K = x.size(3);
  const Tensor padded = n_ * C_ == T_ ? x : at::constant_pad_nd(x, {0, 0, 0, 0, 0, n_ * C_ - T_});
  return padded.reshape({B, n_, C_, H, K}).permute({0, 3, 1, 2, 4}).contiguous();
}

Tensor Chunks::join(const Tensor& y) const { return y.permute({0, 2, 3, 1, 4}).flatten(1, 2).slice(1, 0, T_); }

Tensor Chunks::inside(const Tensor& scores, bool strict) const { return scores * (strict ? strict_ : inside_); }

Tensor Chunks::before(const Tensor& x) const { return before_.defined() ? x * before_ : x; }

Tensor Chunks::after(const Tensor& x) const { return after_.defined() ? x * after_ : x; }

Tensor Chunks::pass(const Tensor& S, int64_t i) const {
  return passes_.defined() ? S * by_row(passes_.select(1, i), S) : S;
}

Decays::Decays(const Tensor& g) {
  const int64_t C = g.size(3);
  const Tensor later = at::ones({C, C}, g.options().dtype(at::kBool)).tril(-1).unsqueeze(2);  // i > j
  between = at::where(later, g.unsqueeze(4), 0).cumsum(3).exp();
  before = g.cumsum(3).exp();
}

Tensor Decays::after() const { return between.defined() ? between.select(3, between.size(3) - 1) : Tensor(); }

std::vector<Tensor> Decays::through(int64_t count) const {
  if (!before.defined()) return std::vector<Tensor>(static_cast<size_t>(count));
  return before.select(3, before.size(3) - 1).unsqueeze(4).unbind(2);
}

Tensor decayed(const Tensor& x, const Tensor& decay) { return decay.defined() ? x * decay : x; }

Tensor scores(const Tensor& X, const Tensor& K, const Tensor& between) {
  if (between.defined() && between.size(5) > 1) return (X.unsqueeze(4) * between * K.unsqueeze(3)).sum(5);
  return decayed(at::matmul(X, K.transpose(-1, -2)), between.defined() ? between.squeeze(5) : between);
}

Tensor restart(const Tensor& S, const Segments& segments, int64_t t) {
  if (segments.none()) return S;
  return S * by_row(segments.starts.select(1, t).logical_not().to(S.scalar_type()), S);
}

}  // namespace lineal

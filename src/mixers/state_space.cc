#include "mixers/state_space.h"

#include <ATen/ATen.h>

#include <cmath>

#include "mixers/chunks.h"

namespace lineal {
namespace {

constexpr int64_t kMatrixTokens = 64;  // up to which a matrix product is faster than Fourier transforms

/// A call's tokens in pieces of L that cross no start of a document; the last of each document may be shorter.
class Cut {
 public:
  Cut(const Tensor& u, int64_t chunk_size, const Segments& segments) : B_(u.size(0)), T_(u.size(1)), D_(u.size(2)) {
    if (segments.none()) {
      L_ = std::min(chunk_size, T_), n_ = (T_ + L_ - 1) / L_;
    } else {
      cut_documents(segments.starts.cpu().to(at::kBool).contiguous(), chunk_size, u.device());
    }
  }
  int64_t length() const { return L_; }
  int64_t count() const { return n_; }

  /// u [B, T, D] -> [D, B, n, L], zeros after a piece's end; and the same with each piece's tokens in reverse.
  std::pair<Tensor, Tensor> split(const Tensor& u) const {
    if (!index_.defined()) {
      const int64_t rest = T_ - (n_ - 1) * L_;
      const Tensor pieces = at::constant_pad_nd(u.permute({2, 0, 1}), {0, L_ - rest}).reshape({D_, B_, n_, L_});
      if (rest == L_) return {pieces, pieces.flip(3)};
      const Tensor last = at::constant_pad_nd(pieces.slice(2, n_ - 1).slice(3, 0, rest).flip(3), {0, L_ - rest});
      return {pieces, at::cat({pieces.slice(2, 0, n_ - 1).flip(3), last}, 2)};
    }
    const Tensor rows = at::constant_pad_nd(u, {0, 0, 0, 1}).reshape({B_ * (T_ + 1), D_});
    const auto gathered = [&](const Tensor& index) {
      return rows.index_select(0, index.flatten()).t().reshape({D_, B_, n_, L_});
    };
    return {gathered(index_), gathered(reversed_)};
  }

  /// y [D, B, n, L] -> [B, T, D].
  Tensor join(const Tensor& y) const {
    if (!index_.defined()) return y.reshape({D_, B_, n_ * L_}).slice(2, 0, T_).permute({1, 2, 0});
    return y.reshape({D_, B_ * n_ * L_}).index_select(1, place_).view({D_, B_, T_}).permute({1, 2, 0});
  }

  /// x [D, B, N], zeros in the rows whose piece i begins a document.
  Tensor enter(const Tensor& x, int64_t i) const {
    return fresh_.defined() ? x.masked_fill(fresh_.select(1, i).unsqueeze(1), 0) : x;
  }
  /// Of x [D, B, n, N] each row's last piece, [D, B, N].
  Tensor last(const Tensor& x) const {
    if (!index_.defined()) return x.select(2, n_ - 1);
    return x.flatten(1, 2).index_select(1, last_);
  }
  /// Its tokens, int64 [B].
  Tensor last_length(at::Device device) const {
    return last_length_.defined() ? last_length_ : at::full({B_}, T_ - (n_ - 1) * L_, at::kLong).to(device);
  }
  bool last_is_whole() const { return !last_length_.defined() && n_ * L_ == T_; }

 private:
  void cut_documents(const Tensor& starts, int64_t chunk_size, at::Device device) {
    std::vector<std::vector<int64_t>> begins(static_cast<size_t>(B_));  // of each row's documents, and T
    for (int64_t b = 0; b < B_; ++b) {
      const bool* row = starts.const_data_ptr<bool>() + b * T_;
      for (int64_t t = 0; t < T_; ++t) {
        if (t == 0 || row[t]) begins[static_cast<size_t>(b)].push_back(t);
      }
      begins[static_cast<size_t>(b)].push_back(T_);
    }
    const auto pieces_of = [&](const std::vector<int64_t>& row, int64_t L) {
      int64_t count = 0;
      for (size_t d = 0; d + 1 < row.size(); ++d) count += (row[d + 1] - row[d] + L - 1) / L;
      return count;
    };
    int64_t least = 0;
    for (int64_t L = std::min(chunk_size, T_); L >= 1; L /= 2) {  // short documents fill long pieces with zeros
      constexpr int64_t kPerPiece = 64;                           // what a piece costs beside its tokens, in tokens
      int64_t n = 0;
      for (const auto& row : begins) n = std::max(n, pieces_of(row, L));
      if (least != 0 && n * (L + kPerPiece) >= least) continue;
      least = n * (L + kPerPiece), L_ = L, n_ = n;
    }
    const int64_t nothing = T_;  // the row of zeros
    index_ = at::full({B_, n_, L_}, nothing, at::kLong), reversed_ = index_.clone();
    fresh_ = at::zeros({B_, n_}, at::kBool);
    place_ = at::empty({B_ * T_}, at::kLong), last_ = at::empty({B_}, at::kLong),
    last_length_ = at::empty({B_}, at::kLong);
    for (int64_t b = 0; b < B_; ++b) {
      const auto& row = begins[static_cast<size_t>(b)];
      int64_t piece = b * n_;
      for (size_t d = 0; d + 1 < row.size(); ++d) {
        for (int64_t from = row[d]; from < row[d + 1]; from += L_, ++piece) {
          const int64_t length = std::min(L_, row[d + 1] - from);
          fresh_.mutable_data_ptr<bool>()[piece] = from == row[d] && starts.const_data_ptr<bool>()[b * T_ + from];
          for (int64_t j = 0; j < length; ++j) {
            index_.mutable_data_ptr<int64_t>()[piece * L_ + j] = from + j;
            reversed_.mutable_data_ptr<int64_t>()[piece * L_ + j] = from + length - 1 - j;
            place_.mutable_data_ptr<int64_t>()[b * T_ + from + j] = piece * L_ + j;
          }
          last_.mutable_data_ptr<int64_t>()[b] = piece;
          last_length_.mutable_data_ptr<int64_t>()[b] = length;
        }
      }
    }
    const Tensor rows = at::arange(B_, at::kLong).mul_(T_ + 1).view({B_, 1, 1});
    index_ += rows, reversed_ += rows;
    for (Tensor* tensor : {&index_, &reversed_, &place_, &fresh_, &last_, &last_length_}) *tensor = tensor->to(device);
  }

  int64_t B_, T_, D_, L_ = 0, n_ = 0;
  // With documents only:
  Tensor index_, reversed_;    // [B, n, L], rows of u with a row of zeros after each sequence
  Tensor place_;               // [B * T], of the token in the pieces
  Tensor fresh_;               // [B, n]
  Tensor last_, last_length_;  // [B]
};

}  // namespace

std::shared_ptr<const StateSpace::Pieces> StateSpace::pieces(int64_t L, at::ScalarType type) const {
  if (at::GradMode::is_enabled()) return make_pieces(L, type);
  if (!kept_.pieces || kept_.L != L || kept_.type != type) kept_ = {L, type, make_pieces(L, type)};
  return kept_.pieces;
}

Tensor real_view(const Tensor& x) { return at::view_as_real(x.resolve_conj()).flatten(-2); }

Tensor complex_view(const Tensor& x) { return at::view_as_complex(x.unflatten(-1, {x.size(-1) / 2, 2}).contiguous()); }

Tensor diagonal_powers(const Tensor& log_dA, int64_t L, at::ScalarType type) {
  const int64_t D = log_dA.size(0), few = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(L))));
  const int64_t many = (L + few - 1) / few;
  const auto powers = [&](int64_t count, int64_t apart) {
    const Tensor l = at::arange(count, log_dA.options().dtype(at::kDouble)) * apart;
    return (l.view({count, 1}) * log_dA.unsqueeze(1)).exp().to(at::toComplexType(type));  // [D, count, N/2]
  };
  const Tensor product = powers(many, few).unsqueeze(2) * powers(few, 1).unsqueeze(1);
  return product.view({D, many * few, log_dA.size(1)}).slice(1, 0, L);
}

Tensor causal_convolution(const Tensor& K, const Tensor& u) {
  const int64_t D = u.size(0), M = u.size(1), T = u.size(2), block = std::min(kMatrixTokens, T);
  int64_t L = block;
  while (L < T) L *= 2;
  const Tensor k = at::constant_pad_nd(K, {0, L - T}), x = at::constant_pad_nd(u, {0, L - T}).reshape({D, -1, block});
  // [D, j, t]: K_{t-j}
  const Tensor toeplitz = at::constant_pad_nd(k.slice(1, 0, block), {block - 1, 0}).unfold(1, block, 1).flip(1);
  Tensor y = at::bmm(x, toeplitz);
  for (int64_t half = block; half < L; half *= 2) {
    const Tensor first = x.view({D, -1, 2, half}).select(2, 0);
    const Tensor product = at::fft_rfft(first, 2 * half) * at::fft_rfft(k.slice(1, 0, 2 * half)).unsqueeze(1);
    const Tensor added = at::fft_irfft(product, 2 * half).slice(2, half);
    const auto halves = y.view({D, -1, 2, half}).unbind(2);
    y = at::stack({halves[0], halves[1] + added}, 2);
  }
  return y.view({D, M, L}).slice(2, 0, T);
}

Tensor state_space_steps(const StateSpace& system, const Tensor& u, Tensor& x, const Segments& segments) {
  const Tensor input = u.to(at::kDouble);
  Tensor h = at::view_as_complex(x.to(at::kDouble).contiguous()), out;
  std::vector<Tensor> y;
  for (int64_t t = 0; t < u.size(1); ++t) {
    std::tie(out, h) = system.step(input.select(1, t), restart(h, segments, t));
    y.push_back(out);
  }
  const auto type = x.scalar_type();
  x = at::view_as_real(h.resolve_conj()).to(type).contiguous();
  return at::stack(y, 1).to(type);
}

Tensor state_space_pieces(const StateSpace& system, const Tensor& u, Tensor& x, int64_t chunk_size,
                          const Segments& segments) {
  const Cut cut(u, chunk_size, segments);
  const int64_t B = u.size(0), D = u.size(2), N = 2 * x.size(2), n = cut.count(), L = cut.length();
  const auto pieces = system.pieces(L, x.scalar_type());
  const auto [tokens, reversed] = cut.split(u);  // [D, B, n, L]
  const Tensor added = pieces->absorb(reversed.reshape({D, B * n, L})).view({D, B, n, N});

  std::vector<Tensor> entering;
  Tensor h = x.flatten(2).transpose(0, 1);  // [D, B, N]
  for (int64_t i = 0; i < n; ++i) {
    h = cut.enter(h, i);
    entering.push_back(h);
    if (i + 1 < n) h = pieces->advance(h) + added.select(2, i);
  }
  const Tensor before = at::stack(entering, 2);  // [D, B, n, N]
  const Tensor then = cut.last(before);
  h = (cut.last_is_whole() ? pieces->advance(then) : pieces->advance(then, cut.last_length(u.device()))) +
      cut.last(added);
  x = h.transpose(0, 1).reshape({B, D, N / 2, 2}).contiguous();

  const Tensor y = causal_convolution(pieces->kernel(), tokens.flatten(1, 2)) + pieces->respond(before.flatten(1, 2));
  return cut.join(y.reshape({D, B, n, L}));
}

Tensor state_space(const StateSpace& system, const Tensor& u, Tensor& x, int64_t chunk_size, const Segments& segments) {
  if (u.size(1) <= std::min(system.few_tokens(), chunk_size)) return state_space_steps(system, u, x, segments);
  return state_space_pieces(system, u, x, chunk_size, segments);
}

}  // namespace lineal

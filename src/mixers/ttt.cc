#include "mixers/ttt.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"
#include "mixers/linear.h"

namespace lineal {
namespace {

constexpr double kPostNormEps = 1e-6;

/// Where each token of a call lies in its row's inner batches. Rows may be at different places, and documents may start
/// anywhere, so each row's inner batches are left-aligned in n blocks of at most C tokens.
struct Layout {
  int64_t n, C;
  Tensor gather;    // [B * n * C] rows of [B * (T + 1)], the last of each sequence being padding; undefined: identity
  Tensor scatter;   // [B * T] rows of [B * n * C]
  Tensor restart;   // bool [B, n], on the CPU: the block starts a document
  Tensor complete;  // bool [B, n], on the CPU: the block ends its inner batch

  /// position [B, T]: each token's place in its document; K: the size of an inner batch.
  Layout(const Tensor& position, int64_t size) {
    const Tensor where = position.to(at::kCPU);
    const int64_t B = where.size(0), T = where.size(1);
    const Tensor place = where.remainder(size);
    const Tensor t = at::arange(T).expand({B, T});
    const Tensor begins = (place == 0).logical_or(t == 0);
    const Tensor block = begins.cumsum(1) - 1;
    const Tensor slot = t - std::get<0>(at::where(begins, t, 0).cummax(1));
    n = block.max().item<int64_t>() + 1;
    C = slot.max().item<int64_t>() + 1;
    const Tensor target = block * C + slot;             // [B, T]
    const auto per_block = [&](const Tensor& tokens) {  // true where any token of the block is
      return at::zeros({B, n}, at::kLong).scatter_add(1, block, tokens.to(at::kLong)) > 0;
    };
    restart = per_block(where == 0);
    complete = per_block(place == size - 1);
    if (n * C == T) return;
    const Tensor row = at::arange(B).unsqueeze(1);
    gather = (at::full({B, n * C}, T).scatter(1, target, t) + row * (T + 1)).flatten().to(position.device());
    scatter = (target + row * (n * C)).flatten().to(position.device());
  }

  /// x [B, T, H, K] -> [n, B, H, C, K], zeros for padding.
  Tensor blocks(const Tensor& x) const {
    const int64_t B = x.size(0);
    Tensor y = x;
    if (gather.defined()) {
      const Tensor padding = at::zeros({B, 1, x.size(2), x.size(3)}, x.options());
      y = at::cat({x, padding}, 1).flatten(0, 1).index_select(0, gather);
    }
    return y.reshape({B, n, C, x.size(2), x.size(3)}).permute({1, 0, 3, 2, 4}).contiguous();
  }

  /// n tensors [B, H, C, K] -> [B, T, H, K].
  Tensor tokens(const std::vector<Tensor>& blocks, int64_t T) const {
    const Tensor y = at::stack(blocks, 1).transpose(2, 3);  // [B, n, C, H, K]
    const int64_t B = y.size(0), H = y.size(3), K = y.size(4);
    if (!scatter.defined()) return y.reshape({B, T, H, K});
    return y.reshape({B * n * C, H, K}).index_select(0, scatter).reshape({B, T, H, K});
  }
};

/// x [B] -> [B, 1, ...] with the dimensions of `like` [B, ...].
Tensor per_row(const Tensor& x, const Tensor& like) {
  std::vector<int64_t> shape(static_cast<size_t>(like.dim()), 1);
  shape[0] = like.size(0);
  return x.reshape(shape);
}

/// W - s D, s [B]: the weights each row has reached. An undefined D is zero.
Weights reached(const Weights& W, const Weights& D, const Tensor& s) {
  Weights result;
  for (size_t i = 0; i < W.size(); ++i) result.push_back(D[i].defined() ? W[i] - per_row(s, W[i]) * D[i] : W[i]);
  return result;
}

/// mask [B] on the CPU -> where(mask, a, b) by rows, without work when the rows agree.
Tensor select_rows(const Tensor& mask, const Tensor& a, const Tensor& b) {
  if (mask.all().item<bool>()) return a;
  if (!mask.any().item<bool>()) return b;
  return at::where(per_row(mask.to(a.device()), a), a, b);
}

}  // namespace

Tensor InnerNorm::operator()(const Tensor& z) const {
  if (!on) return z;
  return at::addcmul(beta, gamma, at::layer_norm(z, {z.size(-1)}, {}, {}, kEps));
}

Tensor InnerNorm::loss_gradient(const Tensor& z, const Tensor& target) const {
  if (!on) return z - target;
  const Tensor normal = at::layer_norm(z, {z.size(-1)}, {}, {}, kEps);
  const Tensor r = (z.var(at::IntArrayRef{-1}, /*correction=*/0, /*keepdim=*/true) + kEps).rsqrt();
  const Tensor u = (at::addcmul(beta, gamma, normal) - target) * gamma;
  const auto mean = [](const Tensor& x) { return x.mean(-1, /*keepdim=*/true); };
  return (u - mean(u) - normal * mean(u * normal)) * r;
}

Tensor InnerModel::dual(const InnerBatch&, const InnerNorm&, const Weights&, Weights&) const {
  fail("ttt: this inner model has no dual(), expected has_dual() to be false");
}

Tensor ttt_primal(const InnerModel& f, const InnerBatch& batch, const InnerNorm& norm, const Weights& W, Weights& D) {
  const int64_t B = batch.k.size(0), H = batch.k.size(1), C = batch.k.size(2), K = batch.k.size(3);
  const bool keep_graph = at::GradMode::is_enabled();
  const auto per_token = [&](const Tensor& x) { return x.reshape({B * H * C, 1, K}); };
  Weights gradients;
  {
    at::AutoGradMode enable(true);
    Weights copies;  // of the weights, one for each token, so that one backward gives the gradient of each
    for (const Tensor& w : W) {
      auto shape = w.sizes().vec();
      shape.insert(shape.begin() + 2, C);
      Tensor copy = w.unsqueeze(2).expand(shape).flatten(0, 2);
      if (!copy.requires_grad()) copy = copy.detach().requires_grad_();
      copies.push_back(copy);
    }
    const Tensor z = f.forward(per_token(batch.k), copies).reshape({B, H, C, K});
    const Tensor loss = 0.5 * (norm(z) - batch.target).square().sum();
    gradients = torch::autograd::grad({loss}, copies, {}, /*retain_graph=*/keep_graph, /*create_graph=*/keep_graph);
  }
  Weights answers;
  for (size_t i = 0; i < W.size(); ++i) {
    const Tensor token = gradients[i].reshape({B, H, C, -1}) * batch.eta;  // [B, H, C, weights of a head]
    Tensor sums = token.cumsum(2);
    if (D[i].defined()) sums = sums + D[i].reshape({B, H, 1, -1});
    const Tensor w = W[i].reshape({B, H, 1, -1}) - batch.scale * sums;
    auto shape = W[i].sizes().vec();
    D[i] = own_storage(sums.select(2, C - 1)).reshape(shape);
    shape.erase(shape.begin(), shape.begin() + 2);
    shape.insert(shape.begin(), B * H * C);
    answers.push_back(w.reshape(shape));
  }
  return f.forward(per_token(batch.q), answers).reshape({B, H, C, K});
}

namespace {

/// The sum of the inner loss over the real tokens of all rows and heads; real [B, 1, C, 1] is 1, and 0 for padding.
Tensor inner_loss(const InnerModel& f, const InnerBatch& batch, const InnerNorm& norm, const Weights& W,
                  const Tensor& real) {
  Weights flat;
  for (const Tensor& w : W) flat.push_back(w.flatten(0, 1));
  const Tensor z = f.forward(batch.k.flatten(0, 1), flat).view_as(batch.k);
  const Tensor loss = 0.5 * (norm(z) - batch.target).square().sum(-1, /*keepdim=*/true);
  return (loss * real).sum();
}

}  // namespace

kernels::TTTOutput ttt_reference(const InnerModel& f, const kernels::TTTInput& given, bool dual) {
  kernels::TTTInput in = given;
  const auto type = in.eta.scalar_type();  // the state's
  for (Tensor* x : {&in.q, &in.k, &in.v}) *x = x->to(type);
  const int64_t B = in.q.size(0), T = in.q.size(1), H = in.q.size(2), C = in.scale.size(0);
  const Tensor position = Segments{in.starts}.positions(in.position, T);  // [B, T]
  const Layout layout(position, C);
  const Tensor place = position.remainder(C);
  const Tensor all_q = layout.blocks(in.q), all_k = layout.blocks(in.k);
  const auto q = all_q.unbind(0), k = all_k.unbind(0), eta = layout.blocks(in.eta.unsqueeze(3)).unbind(0);
  const auto target = layout.blocks(in.residual ? in.v - in.k : in.v).unbind(0);
  const auto scales = layout.blocks(in.scale.index_select(0, place.flatten()).reshape({B, T, 1, 1})).unbind(0);
  std::vector<Tensor> qk, qk1;
  if (dual) {
    const Tensor products = at::matmul(all_q, all_k.transpose(-1, -2));
    qk = products.tril().unbind(0), qk1 = (products + 1).tril().unbind(0);
  }
  const Tensor last_scale = in.scale.select(0, C - 1);
  const bool normed = in.gamma.defined();
  const InnerNorm norm{normed, normed ? in.gamma.unsqueeze(1) : Tensor(), normed ? in.beta.unsqueeze(1) : Tensor()};

  Weights W = in.W, D = in.D, start(in.W.size());
  if (layout.restart.any().item<bool>()) {
    for (size_t i = 0; i < W.size(); ++i) start[i] = in.initial[i].unsqueeze(0).expand_as(W[i]).clone();
  }
  const bool mid_batch = (in.position.remainder(C) != 0).any().item<bool>();
  if (!mid_batch) D.assign(D.size(), Tensor());
  std::vector<Tensor> z;
  std::vector<Tensor> before, after;  // sums of inner losses
  const auto real =
      in.measure ? layout.blocks(at::ones({B, T, 1, 1}, in.scale.options())).unbind(0) : std::vector<Tensor>();
  for (int64_t n = 0; n < layout.n; ++n) {
    const Tensor restart = layout.restart.select(1, n), complete = layout.complete.select(1, n);
    for (size_t i = 0; i < W.size(); ++i) {
      W[i] = select_rows(restart, start[i], W[i]);
      if (D[i].defined()) D[i] = select_rows(restart, at::zeros_like(D[i]), D[i]);
    }
    const auto at_n = static_cast<size_t>(n);
    InnerBatch batch{q[at_n], k[at_n], target[at_n], eta[at_n], scales[at_n], {}};
    if (dual) batch.qk = qk[at_n], batch.qk1 = qk1[at_n];
    z.push_back(dual ? f.dual(batch, norm, W, D) : ttt_primal(f, batch, norm, W, D));
    if (in.measure) {
      const at::NoGradGuard no_grad;
      const Tensor last = (real[at_n].sum(2) - 1).clamp_min(0).to(at::kLong).unsqueeze(2);  // [B, 1, 1, 1]
      before.push_back(inner_loss(f, batch, norm, W, real[at_n]));
      after.push_back(inner_loss(f, batch, norm, reached(W, D, batch.scale.gather(2, last)), real[at_n]));
    }
    for (size_t i = 0; i < W.size(); ++i) {
      W[i] = select_rows(complete, at::addcmul(W[i], last_scale, D[i], -1), W[i]);
      D[i] = complete.all().item<bool>() ? Tensor() : select_rows(complete, at::zeros_like(D[i]), D[i]);
    }
  }
  kernels::TTTOutput out;
  for (size_t i = 0; i < W.size(); ++i) {
    out.W.push_back(own_storage(W[i]));
    out.D.push_back(D[i].defined() ? D[i] : at::zeros_like(W[i]));
  }
  if (in.measure) {
    out.inner_loss = at::stack({at::stack(before).sum(), at::stack(after).sum()}) / static_cast<double>(B * H * T);
  }
  const Tensor answer = norm(at::stack(z, 2).flatten(2, 3)).unflatten(2, {layout.n, layout.C});
  const Tensor o = layout.tokens(answer.unbind(2), T);
  out.o = (in.residual ? in.q + o : o).to(given.q.scalar_type());
  return out;
}

std::vector<Field> TTTConfig::fields() {
  return {
      {"num_attention_heads", &num_attention_heads, size_range(), "heads, each with an inner model of its own"},
      {"mini_batch_size", &mini_batch_size, size_range(), "tokens of an inner batch; 1 is online gradient descent"},
      {"ttt_base_lr", &ttt_base_lr, between(0, 1e6), "inner step size: 1 for ttt_linear, 0.1 for ttt_mlp"},
      {"share_qk", &share_qk, {}, "one projection for q and k, each through a short convolution"},
      {"use_gate", &use_gate, {}, "multiply the output by gelu(W_g x)"},
      {"conv_kernel", &conv_kernel, between(1, 64), "width of that convolution"},
      {"rope_theta", &rope_theta, at_least(0), "rotary base, positions within the inner batch; 0 for none"},
      {"norm", &norm, {}, "layer norm on the inner model's output"},
      {"residual", &residual, {}, "x + f(x) instead of f(x)"},
      {"bias", &bias, {}, "the inner model has biases"},
      {"eta", &eta, one_of({"learned", "fixed"}), "step per token and head, or ttt_base_lr itself"},
      {"initial_weights", &initial_weights, one_of({"learned", "zero"}), "W_0"},
      {"form", &form, one_of({"auto", "dual", "primal"}),
       "same numbers, by matrix products or a gradient per token; auto: dual if the inner model has one"},
  };
}

TTT::TTT(std::string name, const TTTConfig& config, int64_t D, std::unique_ptr<InnerModel> inner)
    : name_(std::move(name)),
      config_(config),
      D_(D),
      H_(config.num_attention_heads),
      K_(head_size(name_, D, H_)),
      inner_(std::move(inner)),
      shapes_(inner_->weights(K_)) {
  check_rotary_base(name_, config.rope_theta);
  if (config.rope_theta > 0 && K_ % 2 != 0) fail(name_, ": head size is ", K_, ", rotary embedding needs an even one");
  if (config.form == "dual" && !inner_->has_dual()) {
    fail(name_, ": form is dual and the inner model has none, expected form auto or primal, or an inner model with ",
         "has_dual() and dual()");
  }
  for (const auto& weight : shapes_) {
    auto shape = weight.shape;
    shape.insert(shape.begin(), H_);
    const bool learned = config.initial_weights == "learned";
    weights_.push_back(learned ? register_parameter(weight.name, at::zeros(shape))
                               : register_buffer(weight.name, at::zeros(shape)));
  }
  q_proj_ = register_module("q_proj", linear(D, D));
  if (!config.share_qk) k_proj_ = register_module("k_proj", linear(D, D));
  v_proj_ = register_module("v_proj", linear(D, D));
  o_proj_ = register_module("o_proj", linear(D, D));
  if (config.use_gate) g_proj_ = register_module("g_proj", linear(D, D));
  if (config.share_qk) {
    conv_q_ = register_module("conv_q", std::make_shared<ShortConv>(D, config.conv_kernel));
    conv_k_ = register_module("conv_k", std::make_shared<ShortConv>(D, config.conv_kernel));
  }
  if (config.eta == "learned") {
    lr_weight_ = register_parameter("learnable_ttt_lr_weight", at::zeros({H_, 1, D}));
    lr_bias_ = register_parameter("learnable_ttt_lr_bias", at::zeros({H_, 1}));
    token_idx_ = register_parameter("learnable_token_idx", at::zeros({config.mini_batch_size}));
  }
  if (config.norm) {
    norm_weight_ = register_parameter("ttt_norm_weight", at::ones({H_, K_}));
    norm_bias_ = register_parameter("ttt_norm_bias", at::zeros({H_, K_}));
  }
  post_norm_ = register_module("post_norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({D}).eps(kPostNormEps)));
}

Weights TTT::initial_weights(int64_t B) const {
  Weights W;
  for (const Tensor& weight : weights_) {
    auto shape = weight.sizes().vec();
    shape.insert(shape.begin(), B);
    W.push_back(weight.to(state_options()).unsqueeze(0).expand(shape).clone(at::MemoryFormat::Contiguous));
  }
  return W;
}

State TTT::initial_state(int64_t B) const {
  State state;
  const Weights W = initial_weights(B);
  for (size_t i = 0; i < W.size(); ++i) state[shapes_[i].name] = W[i];
  for (size_t i = 0; i < W.size(); ++i) state[shapes_[i].name + "_step"] = at::zeros_like(W[i]);
  state["position"] = at::zeros({B}, state_options().dtype(at::kLong));
  if (config_.share_qk) state["conv"] = conv_q_->initial_state(B, state_options());
  return state;
}

Tensor TTT::token_scale() {
  if (!token_idx_.defined()) return at::ones({config_.mini_batch_size}, state_options());
  return scale_(token_idx_, [&](const Tensor& token_idx) {
    const Tensor i = at::arange(1, config_.mini_batch_size + 1, state_options());
    return (i.reciprocal() + token_idx).clamp_min(0);
  });
}

const RopeTable& TTT::table(at::TensorOptions like) {
  const auto type = like.dtype().toScalarType() == at::kDouble ? at::kDouble : at::kFloat;
  if (!table_.c.defined() || table_.c.scalar_type() != type || table_.c.device() != like.device()) {
    const Tensor places = at::arange(config_.mini_batch_size, like.dtype(at::kLong));
    table_ = rope_table(places, K_, config_.rope_theta, RopePairs::interleaved, like);
  }
  return table_;
}

TTT::Views TTT::views(const Tensor& x, const Tensor& position, State& state, const Segments& segments,
                      const Rows* rows) {
  Tensor q = q_proj_(x), k;
  if (config_.share_qk) {
    const Tensor shared = q;
    Tensor window = state["conv"];  // of both, so that only one of them may change it in place
    if (rows) window = window.index_select(0, rows->index().to(window.device()));
    k = conv_k_->forward(shared, window, segments);
    q = conv_q_->forward(shared, state["conv"], segments, Activation::none, rows);
  } else {
    k = k_proj_(x);
  }
  const auto type = state_options().dtype().toScalarType();
  const auto heads = [&](const Tensor& y) { return y.unflatten(2, {H_, K_}); };
  Tensor v = v_proj_(x);
  if (q.scalar_type() != v.scalar_type()) q = q.to(type), k = k.to(type), v = v.to(type);  // the kernels take one type
  Views views{heads(q), heads(k), heads(v), {}};
  if (config_.rope_theta > 0) {
    const Tensor place = position.remainder(config_.mini_batch_size);
    const RopeTable& angles = table(views.q.options());
    views.q = rope(views.q, place, angles, RopePairs::interleaved);
    views.k = rope(views.k, place, angles, RopePairs::interleaved);
  }
  const FullPrecision guard(x);
  if (lr_weight_.defined()) {
    const Tensor gate = at::linear(x.to(type), lr_weight_.squeeze(1), lr_bias_.squeeze(1));  // [B, T, H]
    views.eta = gate.sigmoid() * (config_.ttt_base_lr / static_cast<double>(K_));
  } else {
    views.eta = at::full({x.size(0), x.size(1), H_}, config_.ttt_base_lr, state_options());
  }
  return views;
}

Tensor TTT::learn(const Views& views, const Tensor& position, State& state, const Segments& segments,
                  const Rows* rows) {
  kernels::TTTInput in;
  in.q = views.q, in.k = views.k, in.v = views.v, in.eta = views.eta;
  in.scale = token_scale();
  if (config_.norm) in.gamma = norm_weight_, in.beta = norm_bias_;
  in.position = position;
  in.starts = segments.starts;
  in.residual = config_.residual;
  in.measure = measure;
  in.rows = rows;
  in.initial = weights_;
  for (Tensor& weight : in.initial) weight = weight.to(state_options());
  for (const auto& shape : shapes_) {
    in.W.push_back(state[shape.name]);
    in.D.push_back(state[shape.name + "_step"]);
  }
  static const kernels::Operation<kernels::TTTOutput, kernels::TTTInput> none("ttt", nullptr);
  const bool dual = config_.form != "primal" && inner_->has_dual();
  const auto& operation = dual && inner_->kernel() ? *inner_->kernel() : none;
  const auto reference = [&](const kernels::TTTInput& input) { return ttt_reference(*inner_, input, dual); };
  const kernels::TTTOutput out = kernels::use(operation, reference, in);
  for (size_t i = 0; i < shapes_.size(); ++i) {
    state[shapes_[i].name] = out.W[i];
    state[shapes_[i].name + "_step"] = out.D[i];
  }
  if (measure) {
    measured = {{"inner_loss_before", out.inner_loss[0]}, {"inner_loss_after", out.inner_loss[1]}};
  }
  return out.o;
}

Tensor TTT::forward(const Tensor& x, State& state, const Segments& segments) {
  return mix(x, state, segments, nullptr);
}

Tensor TTT::step(const Tensor& x, State& pool, const Rows& rows) { return mix(x, pool, {}, &rows); }

Tensor TTT::mix(const Tensor& x, State& state, const Segments& segments, const Rows* rows) {
  const Dims dims = check_input(name_.c_str(), x, state, D_, rows);
  const Tensor position = count(state, dims['T'], segments, rows);  // [B, T]
  const Views seen = views(x, position, state, segments, rows);
  Tensor o;
  {
    const FullPrecision guard(x);
    o = learn(seen, position.select(1, 0), state, segments, rows).flatten(2);  // [B, T, D]
  }
  o = post_norm_(o);
  if (config_.use_gate) o = o * at::gelu(g_proj_(x), "tanh");
  return o_proj_(o);
}

Weights TTT::current_weights(const State& state) {
  const Tensor place = state.at("position").remainder(config_.mini_batch_size);  // [B]; 0: W has just been moved
  const Tensor scale = token_scale().index_select(0, (place - 1).clamp_min(0));
  Weights W, D;
  for (const auto& shape : shapes_) {
    W.push_back(state.at(shape.name));
    D.push_back(state.at(shape.name + "_step"));
  }
  return reached(W, D, scale);
}

void TTT::reset_parameters(double deviation) {
  at::NoGradGuard no_grad;
  for (auto* map : {&q_proj_, &k_proj_, &v_proj_, &o_proj_, &g_proj_}) {
    if (!map->is_empty()) reset_linear(*map, deviation);
  }
  if (conv_q_) conv_q_->reset_parameters(), conv_k_->reset_parameters();
  for (size_t i = 0; i < shapes_.size(); ++i) {
    config_.initial_weights == "learned" ? weights_[i].normal_(0, shapes_[i].deviation) : weights_[i].zero_();
  }
  if (lr_weight_.defined()) lr_weight_.normal_(0, deviation), lr_bias_.zero_(), token_idx_.zero_();
  if (norm_weight_.defined()) norm_weight_.fill_(1), norm_bias_.zero_();
  post_norm_->reset_parameters();
}

}  // namespace lineal

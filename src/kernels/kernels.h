// Every fused operation, and how a mixer asks for one beside the reference that defines it.
//
//   kernels::use(kernels::ttt_linear, reference, input)
//
// An operation returns nothing where it has no kernel: for another device, type or shape. Nothing falls back silently:
// `uses()` tells what ran, and under Choice::fused a missing kernel is an Error.
//
// Inputs with `rows` can step a pool. Then T is 1, no document starts, gradients are off, the parts of the state are
// [P, ...] for any strides, and sequence b has row rows[b] of them, which changes in place; the result's state is the
// pool's own tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/rows.h"

namespace lineal::kernels {

using at::Tensor;

/// --kernels auto | reference | fused. automatic: the fused kernel where there is one, else the reference.
enum class Choice { automatic, reference, fused };
void choose(Choice choice);
void choose(const std::string& name);
Choice chosen();

/// What operations have in common: a name, and how often each of its forms ran.
struct Uses {
  const char* name;
  mutable std::atomic<int64_t> fused = 0, reference = 0;

  explicit Uses(const char* the_name) : name(the_name) {}
};

template <class Result, class... Inputs>
struct Operation : Uses {
  using Fused = std::optional<Result> (*)(const Inputs&...);
  Fused fused_form;  // null: has none at all

  Operation(const char* the_name, Fused form) : Uses(the_name), fused_form(form) {}
};

/// All operations in the order of the table in kernels.cc.
const std::vector<const Uses*>& uses();
/// What ran so far, in words: "ttt_linear fused on AVX-512, delta_rule reference"; empty if no operation did.
std::string summary();
/// The instruction set the CPU kernels run on: "AVX-512", "AVX2", "SSE4", "NEON". The environment variable LINEAL_CPU
/// names the widest to use.
std::string cpu_instructions();

/// Each part [P, ...] becomes its rows [B, ...].
void take_rows(const Rows& rows, const std::vector<Tensor*>& parts);
/// Writes the parts [B, ...] into those of the pool and has them be the pool's.
void put_rows(const Rows& rows, const std::vector<Tensor*>& parts, const std::vector<Tensor*>& pool);

template <class Result, class Reference, class... Inputs>
Result by_reference(const Reference& reference, const Inputs&... inputs) {
  return reference(inputs...);
}

template <class Result, class Reference, class Input>
requires requires(Input input) { input.rows; }
Result by_reference(const Reference& reference, const Input& input) {
  if (!input.rows) return reference(input);
  Input pool = input, own = input;
  own.rows = nullptr;
  take_rows(*input.rows, own.state());
  Result result = reference(own);
  put_rows(*input.rows, result.state(), pool.state());
  return result;
}

/// The fused form of the operation or `reference`, as chosen.
template <class Result, class... Inputs, class Reference>
Result use(const Operation<Result, Inputs...>& operation, const Reference& reference,
           const std::type_identity_t<Inputs>&... inputs) {
  const Choice choice = chosen();
  if (choice != Choice::reference && operation.fused_form) {
    if (std::optional<Result> result = operation.fused_form(inputs...)) {
      ++operation.fused;
      return *std::move(result);
    }
  }
  if (choice == Choice::fused) {
    fail(operation.name, ": no fused kernel for this device, type and shape, expected --kernels auto or reference, ",
         "in Python lineal.kernels(\"auto\")");
  }
  ++operation.reference;
  return by_reference<Result>(reference, inputs...);
}

inline std::vector<Tensor*> parts_of(std::vector<Tensor>& W, std::vector<Tensor>& D) {
  std::vector<Tensor*> parts;
  for (auto* list : {&W, &D}) {
    for (Tensor& part : *list) parts.push_back(&part);
  }
  return parts;
}

/// What a TTT layer's inner loop reads; formulas and letters in mixers/ttt.h. Weights are in the order of the inner
/// model, without b when it has none: W1 [H, K, K], b1 [H, 1, K] of ttt_linear; W1 [H, K, 4K], b1 [H, 1, 4K],
/// W2 [H, 4K, K], b2 [H, 1, K] of ttt_mlp.
struct TTTInput {
  Tensor q, k, v;               // [B, T, H, K], of one type; may be narrower than the rest
  Tensor eta;                   // [B, T, H]
  Tensor scale;                 // [C], C the tokens of an inner batch
  Tensor gamma, beta;           // [H, K], or undefined: no norm
  Tensor position;              // int64 [B], tokens of the running document that were read before
  Tensor starts;                // bool [B, T], where documents start, or undefined
  std::vector<Tensor> initial;  // [H, ...], what documents start with
  std::vector<Tensor> W, D;     // [B, H, ...], at the start of the running inner batch, and its sums
  bool residual = true;         // g(x; W) = x + LN(f(x; W)), not LN(f(x; W))
  bool measure = false;
  const Rows* rows = nullptr;  // of W and D

  std::vector<Tensor*> state() { return parts_of(W, D); }
};

struct TTTOutput {
  Tensor o;                  // [B, T, H, K], of the type of q
  std::vector<Tensor> W, D;  // after the last token
  Tensor inner_loss;         // with `measure`: [2], mean over tokens before and after their inner batch's steps

  std::vector<Tensor*> state() { return parts_of(W, D); }
};

extern const Operation<TTTOutput, TTTInput> ttt_linear, ttt_mlp;

/// What a linear recurrence reads: S_t = diag(exp(g_t)) S_{t-1} + k_t u_t^T and o_t = S_t^T q_t, where u_t = v_t, or
/// with beta the delta rule's beta_t (v_t - (diag(exp(g_t)) S_{t-1})^T k_t). q, k and v may be bfloat16, and so is o
/// then; the rest is in the state's type.
struct RecurrenceInput {
  Tensor q, k;    // [B, T, H, K]
  Tensor v;       // [B, T, H, V]
  Tensor beta;    // [B, T, H], or undefined
  Tensor g;       // logarithms of decays, [B, T, H] or per channel [B, T, H, K], or undefined: none
  Tensor S;       // [B, H, K, V]
  Tensor starts;  // bool [B, T], where documents start with S = 0, or undefined
  const Rows* rows = nullptr;

  std::vector<Tensor*> state() { return {&S}; }
};

struct RecurrenceOutput {
  Tensor o;  // [B, T, H, V]
  Tensor S;  // after the last token

  std::vector<Tensor*> state() { return {&S}; }
};

extern const Operation<RecurrenceOutput, RecurrenceInput> linear_attention, delta_rule;

/// What attention through random features reads: a linear recurrence of phi(k) and phi(q), formulas and letters in
/// mixers/performer.cc and random_features.cc.
struct FeatureAttentionInput {
  Tensor q, k;        // [B, T, H, K], not yet scaled
  Tensor v;           // [B, T, H, V]
  Tensor projection;  // [M, K]
  std::string map;    // FeatureMap's kinds
  double scale, epsilon;
  Tensor S;       // [B, H, features, V]
  Tensor peak;    // [B, H], of the softmax kernel's features, else undefined
  Tensor fresh;   // bool [B]: the row's first token is its document's
  Tensor starts;  // bool [B, T], where documents start with S = 0, or undefined
  const Rows* rows = nullptr;

  std::vector<Tensor*> state() { return peak.defined() ? std::vector{&S, &peak} : std::vector{&S}; }
};

struct FeatureAttentionOutput {
  Tensor o;        // [B, T, H, V]
  Tensor S, peak;  // after the last token

  std::vector<Tensor*> state() { return peak.defined() ? std::vector{&S, &peak} : std::vector{&S}; }
};

/// Over t's document up to t; over all of it that is in the call, and what the state has read, without rows.
extern const Operation<FeatureAttentionOutput, FeatureAttentionInput> feature_attention, feature_attention_in_documents;
/// The maps that they have kernels for.
const std::vector<std::string>& feature_maps();

/// What a selective scan reads, with what stands around it: h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t and
/// y_t = (C_t . h_t + D u_t) silu(z_t), where dt_t = delta_t + bias, or with softplus softplus(delta_t + bias).
/// Formulas and letters in mixers/mamba.cc.
struct ScanInput {
  Tensor u, delta;        // [B, T, D], float32 or bfloat16; z, B and C of the same type
  Tensor A;               // [D, N]
  Tensor B, C;            // [B, T, G, N], G divides D: channel d uses group floor(d G / D)
  Tensor D;               // [D], or undefined
  Tensor z;               // [B, T, D], or undefined: no gate
  Tensor bias;            // [D], or undefined
  bool softplus = false;  // the step is positive whatever delta is
  Tensor h;               // [B, D, N]
  Tensor starts;          // bool [B, T], where documents start with h = 0, or undefined
  const Rows* rows = nullptr;

  std::vector<Tensor*> state() { return {&h}; }
};

struct ScanOutput {
  Tensor y;  // [B, T, D], of the type of u
  Tensor h;  // after the last token

  std::vector<Tensor*> state() { return {&h}; }
};

extern const Operation<ScanOutput, ScanInput> selective_scan;

/// What a short convolution reads; formulas in mixers/short_conv.h.
struct ConvInput {
  Tensor x;       // [B, T, D], float32 or bfloat16
  Tensor weight;  // [D, 1, J]
  Tensor bias;    // [D]
  Tensor window;  // [B, J-1, D], the inputs before x
  Tensor starts;  // bool [B, T], where documents start with a window of zeros, or undefined
  bool silu = false;
  const Rows* rows = nullptr;

  std::vector<Tensor*> state() { return {&window}; }
};

struct ConvOutput {
  Tensor y;       // [B, T, D], of the type of x
  Tensor window;  // the last J-1 inputs, zeros before the last document

  std::vector<Tensor*> state() { return {&window}; }
};

extern const Operation<ConvOutput, ConvInput> short_conv;

/// What an RMS norm reads: y = weight * s / sqrt(mean(s^2) + eps) over the last dimension, s = x + added.
struct NormInput {
  Tensor x;       // [..., D]
  Tensor added;   // [..., D], or undefined: nothing
  Tensor weight;  // [D]
  double eps;
  bool narrow = false;  // y in bfloat16
};

struct NormOutput {
  Tensor y, sum;  // [..., D]
};

extern const Operation<NormOutput, NormInput> rms_norm;

/// What a rotary embedding reads; formulas in positions/rope.h.
struct RopeInput {
  Tensor x;          // [B, T, H, K], K even
  Tensor c, s;       // [P, K], of each number's pair: cos, and sin with a minus for the first
  Tensor place;      // int64 [B, T], each token's row of c and s
  bool interleaved;  // pairs (2i, 2i+1); else (i, i + K/2)
};

/// x c + x' s, where x' has the numbers of each pair exchanged; of the type of x.
extern const Operation<Tensor, RopeInput> rope;

/// silu(gate) * up, both [..., F].
extern const Operation<Tensor, Tensor, Tensor> swiglu;

/// What the loss of a language model's head reads.
struct TokenLossInput {
  Tensor hidden;   // [R, D]
  Tensor head;     // [N, D]
  Tensor targets;  // int64 [R], below N
  Tensor weights;  // [R]
};

/// sum_r weights_r (-log softmax(head hidden_r)[targets_r]), a scalar of at least float32; no [R, N] is kept.
extern const Operation<Tensor, TokenLossInput> token_loss;

}  // namespace lineal::kernels

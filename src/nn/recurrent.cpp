#include "nn/recurrent.h"

#include "base/error.h"
#include "kernels/cpu/recurrent_ops.h"
#include "nn/device.h"

#include <limits>

namespace parallm {

namespace {

mx::array part(const mx::array& x, int first, int end) { // tokens [first, end) of [B,L,...]
  auto start = mx::Shape(x.ndim(), 0);
  auto stop = x.shape();
  start[1] = first;
  stop[1] = end;
  return mx::slice(x, start, stop);
}

mx::array token(const mx::array& x, int t) {
  return mx::squeeze(part(x, t, t + 1), 1);
}

mx::array f32(const mx::array& x) {
  return mx::astype(x, mx::float32);
}

/** [..,G,N] -> [..,H,N]. */
mx::array to_heads(const mx::array& x, int heads) {
  int groups = x.shape(-2);
  return groups == heads ? x : mx::repeat(x, heads / groups, -2);
}

/** All in float32, q and k one a head. */
LinearRecurrence widened(const LinearRecurrence& in) {
  auto out = in;
  int heads = in.v.shape(2);
  out.q = to_heads(f32(in.q), heads);
  out.k = to_heads(f32(in.k), heads);
  out.v = f32(in.v);
  if (in.read) {
    out.read = to_heads(f32(*in.read), heads);
    out.write = to_heads(f32(*in.write), heads);
  }
  return out;
}

mx::array finished(const LinearRecurrence& in, mx::array y) {
  if (in.skip) {
    y = y + f32(in.v) * mx::expand_dims(*in.skip, 1);
  }
  return mx::astype(y, in.v.dtype());
}

/** (I + lower)⁻¹ for strictly lower triangular [...,C,C], C a power of 2: blocks
 * of the diagonal double in size, [[A,0],[M,B]]⁻¹ = [[A⁻¹,0],[-B⁻¹ M A⁻¹,B⁻¹]]. */
mx::array unit_inverse(const mx::array& lower) {
  int size = lower.shape(-1);
  auto at = mx::arange(size);
  auto inverse = mx::broadcast_to(mx::eye(size), lower.shape());
  for (int half = 1; half < size; half *= 2) {
    auto pair = mx::floor_divide(at, mx::array(2 * half));
    auto second = mx::greater_equal(mx::remainder(at, mx::array(2 * half)), mx::array(half));
    auto same = mx::equal(mx::expand_dims(pair, 1), mx::expand_dims(pair, 0));
    auto corner = mx::logical_and(mx::expand_dims(second, 1), mx::logical_not(mx::expand_dims(second, 0)));
    auto m = mx::where(mx::logical_and(same, corner), lower, mx::array(0.0f));
    inverse = inverse - mx::matmul(mx::matmul(inverse, m), inverse);
  }
  return inverse;
}

/** sum over n of a[i,n] b[j,n] exp(ga[i] - gb[j]) for j <= i (`strictly`: j < i), else 0: [...,C,C]; ga and gb
 * [...,C,1] or [...,C,N], decays' running sums, falling along C. The difference goes into the exponent, as exp(-gb)
 * alone overflows. */
mx::array decayed_products(
    const mx::array& a,
    const mx::array& ga,
    const mx::array& b,
    const mx::array& gb,
    bool strictly = false) {
  int size = a.shape(-2);
  auto seen = mx::tri(size, size, strictly ? -1 : 0, mx::bool_);
  auto infinity = mx::array(-std::numeric_limits<float>::infinity());
  if (ga.shape(-1) == 1) {
    auto differences = mx::where(seen, ga - mx::swapaxes(gb, -1, -2), infinity);
    return mx::matmul(a, mx::swapaxes(b, -1, -2)) * mx::exp(differences);
  }
  auto differences = mx::expand_dims(ga, -2) - mx::expand_dims(gb, -3); // [...,C,C,N]
  auto weights = mx::exp(mx::where(mx::expand_dims(seen, -1), differences, infinity));
  return mx::sum(mx::expand_dims(a, -2) * mx::expand_dims(b, -3) * weights, -1);
}

/** All [B,H,C,...] in float32. */
struct Chunk {
  mx::array q, k, v;
  mx::array log_decay; // [B,H,C,1] or [B,H,C,N]
  mx::array beta; // [B,H,C,1]
  bool delta;
  std::optional<mx::array> read, write;
};

/** With G the decays' running sum within the chunk, every token sees S before it
 * as exp(G) S, and the tokens before it in the chunk as a masked product, as
 * attention does; by the delta rule the updates u solve a triangular system, and
 * so does what `read` finds. state [B,H,P,N]. */
mx::array advance(const Chunk& in, mx::array& state) {
  const auto &q = in.q, &k = in.k;
  auto g = mx::cumsum(in.log_decay, 2);
  auto decay = mx::exp(g);
  auto before = mx::swapaxes(state, -1, -2); // [B,H,N,P]
  auto u = in.beta * in.v;
  if (in.delta) {
    auto seen = mx::matmul(k * decay, before);
    auto products = decayed_products(k, g, k, g, true);
    u = mx::matmul(unit_inverse(in.beta * products), u - in.beta * seen);
  }
  auto y = mx::matmul(q * decay, before) + mx::matmul(decayed_products(q, g, k, g), u);
  int last = g.shape(2) - 1;
  auto end = mx::slice(g, {0, 0, last, 0}, {g.shape(0), g.shape(1), last + 1, g.shape(3)}); // [B,H,1,..]
  auto kept = mx::exp(end - g);
  auto added = mx::matmul(mx::swapaxes(u, -1, -2), k * kept);
  if (in.read) {
    auto until = g - in.log_decay; // without the token's own decay: S before it
    auto seen =
        mx::matmul(*in.read * mx::exp(until), before) + mx::matmul(decayed_products(*in.read, until, k, g, true), u);
    auto products = decayed_products(*in.read, until, *in.write, g, true);
    auto found = mx::matmul(unit_inverse(mx::negative(products)), seen);
    y = y + mx::matmul(decayed_products(q, g, *in.write, g), found);
    added = added + mx::matmul(mx::swapaxes(found, -1, -2), *in.write * kept);
  }
  state = mx::exp(end) * state + added;
  return y;
}

/** [B,L,H,..] -> [B,H,L,..], with zeros up to `length` tokens. */
mx::array by_head(mx::array x, int length) {
  if (x.ndim() == 3) {
    x = mx::expand_dims(x, 3);
  }
  if (x.shape(1) < length) {
    x = mx::pad(x, std::vector<int>{1}, mx::Shape{0}, mx::Shape{length - x.shape(1)});
  }
  return mx::swapaxes(x, 1, 2);
}

mx::array rows(const mx::array& x, int first, int count) { // of [B,H,L,..]
  return mx::slice(x, {0, 0, first, 0}, {x.shape(0), x.shape(1), first + count, x.shape(3)});
}

constexpr int few_tokens = 8; // a loop over them is as fast as a chunk

} // namespace

CausalConv::CausalConv(Weights& weights, const std::string& name, int channels, int kernel, bool bias, bool silu)
    : weight_(0.0f), silu_(silu) {
  auto tensor = name + ".weight";
  if (auto stored = weights.pull(tensor)) { // HF's [C,1,K]
    bool hf = stored->shape() == mx::Shape{channels, 1, kernel};
    weights.put(tensor, hf ? mx::swapaxes(*stored, 1, 2) : *stored);
  }
  auto taken = weights.take(tensor, {channels, kernel, 1});
  weight_ = mx::contiguous(mx::transpose(f32(mx::squeeze(taken, 2))));
  mx::eval(weight_);
  if (bias || weights.has(name + ".bias")) {
    bias_ = weights.take(name + ".bias", {channels}, mx::float32);
  }
}

mx::array CausalConv::operator()(const mx::array& x, mx::array& state) const {
  if (on_cpu()) {
    auto [out, next] = cpu::causal_conv(x, weight_, bias_, silu_, state);
    state = next;
    return out;
  }
  int kernel = weight_.shape(0), length = x.shape(1);
  auto all = mx::concatenate({state, x}, 1);
  state = part(all, length, length + kernel - 1);
  auto wide = f32(all);
  auto sum = mx::array(0.0f);
  for (int j = 0; j < kernel; ++j) {
    sum = sum + part(wide, j, j + length) * mx::slice(weight_, {j, 0}, {j + 1, weight_.shape(1)});
  }
  if (bias_) {
    sum = sum + *bias_;
  }
  return mx::astype(silu_ ? sum * mx::sigmoid(sum) : sum, x.dtype());
}

mx::array linear_recurrence_by_token(const LinearRecurrence& in, mx::array& state) {
  auto x = widened(in);
  std::vector<mx::array> out;
  for (int t = 0; t < in.v.shape(1); ++t) {
    auto k = mx::expand_dims(token(x.k, t), 2); // [B,H,1,N]
    auto q = mx::expand_dims(token(x.q, t), 2);
    auto decay = mx::exp(token(x.log_decay, t));
    auto moved = mx::array(0.0f);
    if (x.read) {
      auto found = mx::sum(state * mx::expand_dims(token(*x.read, t), 2), -1, true);
      moved = found * mx::expand_dims(token(*x.write, t), 2);
    }
    state = state * (decay.ndim() == 2 ? mx::expand_dims(decay, {2, 3}) : mx::expand_dims(decay, 2));
    auto u = token(x.v, t); // [B,H,P]
    if (x.delta) {
      u = u - mx::sum(state * k, -1);
    }
    if (x.beta) {
      u = u * mx::expand_dims(token(*x.beta, t), 2);
    }
    state = state + moved + mx::expand_dims(u, 3) * k;
    out.push_back(mx::sum(state * q, -1));
  }
  return finished(in, mx::stack(out, 1));
}

mx::array linear_recurrence_by_chunk(const LinearRecurrence& in, mx::array& state) {
  auto x = widened(in);
  int length = in.v.shape(1);
  // A decay for each key's dim needs an exponent a pair of tokens and dim: short chunks.
  int chunk = in.log_decay.ndim() == 4 ? 16 : 64;
  int padded = (length + chunk - 1) / chunk * chunk;
  auto beta = x.beta ? *x.beta : mx::ones({in.v.shape(0), length, in.v.shape(2)});
  // Padding changes nothing: it decays by exp(0), and what it adds is 0.
  auto q = by_head(x.q, padded), k = by_head(x.k, padded), v = by_head(x.v, padded);
  auto decay = by_head(x.log_decay, padded);
  beta = by_head(beta, padded);
  if (x.read) {
    x.read = by_head(*x.read, padded);
    x.write = by_head(*x.write, padded);
  }
  std::vector<mx::array> out;
  for (int t = 0; t < length; t += chunk) {
    const auto part = [&](const mx::array& y) { return rows(y, t, chunk); };
    const auto maybe = [&](const std::optional<mx::array>& y) { return y ? std::optional(part(*y)) : std::nullopt; };
    out.push_back(
        advance({part(q), part(k), part(v), part(decay), part(beta), x.delta, maybe(x.read), maybe(x.write)}, state));
  }
  auto y = out.size() == 1 ? out[0] : mx::concatenate(out, 2);
  return finished(in, part(mx::swapaxes(y, 1, 2), 0, length));
}

mx::array linear_recurrence(const LinearRecurrence& in, mx::array& state) {
  if (!on_cpu()) {
    return in.v.shape(1) <= few_tokens ? linear_recurrence_by_token(in, state) : linear_recurrence_by_chunk(in, state);
  }
  auto [out, next] =
      cpu::linear_recurrence(in.q, in.k, in.v, in.log_decay, in.beta, in.skip, in.delta, in.read, in.write, state);
  state = next;
  return out;
}

mx::array selective_scan(
    const mx::array& x,
    const mx::array& dt,
    const mx::array& a,
    const mx::array& b,
    const mx::array& c,
    const mx::array& skip,
    mx::array& state) {
  if (on_cpu()) {
    auto [out, next] = cpu::selective_scan(x, dt, a, b, c, skip, state);
    state = next;
    return out;
  }
  auto wide = f32(x);
  auto update = dt * wide; // [B,L,C]
  std::vector<mx::array> out;
  for (int t = 0; t < x.shape(1); ++t) {
    auto decay = mx::exp(mx::expand_dims(token(dt, t), 2) * a);
    auto in = mx::expand_dims(token(update, t), 2) * mx::expand_dims(f32(token(b, t)), 1);
    state = state * decay + in;
    out.push_back(mx::sum(state * mx::expand_dims(f32(token(c, t)), 1), -1));
  }
  return mx::astype(mx::stack(out, 1) + wide * skip, x.dtype());
}

mx::array linear_scan(const mx::array& log_decay, const mx::array& x, mx::array& state) {
  if (on_cpu()) {
    auto [out, next] = cpu::linear_scan(log_decay, x, state);
    state = next;
    return out;
  }
  auto decay = mx::exp(log_decay);
  std::vector<mx::array> out;
  for (int t = 0; t < x.shape(1); ++t) {
    state = state * token(decay, t) + token(x, t);
    out.push_back(state);
  }
  return mx::stack(out, 1);
}

} // namespace parallm

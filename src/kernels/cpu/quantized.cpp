#include "kernels/cpu/quantized.h"

#include "kernels/cpu/node.h"

namespace parallm::cpu {

namespace {

constexpr struct {
  const char* name;
  Mode mode;
  int group_size;
  int bits;
} small_floats[] = {
    {"mxfp4", Mode::mxfp4, 32, 4},
    {"nvfp4", Mode::nvfp4, 16, 4},
    {"mxfp8", Mode::mxfp8, 32, 8},
};

} // namespace

Quantized quantized(const char* op, const std::string& mode, int group_size, int bits) {
  if (mode == "affine") {
    const bool known_bits = bits >= 2 && bits <= 8 && bits != 7;
    const bool known_group = group_size == 16 || group_size == 32 || group_size == 64 || group_size == 128;
    if (!known_bits || !known_group) {
      fail_op(op, "bits must be 2, 3, 4, 5, 6 or 8 and group_size 16, 32, 64 or 128; got ", bits, " and ", group_size);
    }
    return {Mode::affine, group_size, bits};
  }
  for (const auto& known : small_floats) {
    if (mode == known.name) {
      if (group_size != known.group_size || bits != known.bits) {
        fail_op(
            op,
            mode,
            " has ",
            known.bits,
            " bits in groups of ",
            known.group_size,
            "; got ",
            bits,
            " and ",
            group_size);
      }
      return {known.mode, group_size, bits};
    }
  }
  fail_op(op, "mode must be affine, mxfp4, nvfp4 or mxfp8; got ", mode);
}

Factor read_factor(const std::vector<mx::array>& in, size_t& next, const Quantized& how, bool bias) {
  const auto& w = in[next++];
  Factor factor{.columns = size_t(w.shape(-2)), .how = how, .w = w.data<void>(), .type = element_type(w)};
  if (how.bits > 0) {
    factor.type = element_type(in[next]);
    factor.scales = in[next++].data<void>();
    if (how.mode == Mode::affine) {
      factor.biases = in[next++].data<void>();
    }
  }
  if (how.scaled) {
    factor.global_scale = in[next++].data<float>();
  }
  if (bias) {
    factor.bias_type = element_type(in[next]);
    factor.bias = in[next++].data<void>();
  }
  return factor;
}

void check_scales(
    const char* op,
    const mx::Shape& groups,
    const Quantized& how,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    const std::optional<mx::array>& global_scale) {
  const bool affine = how.mode == Mode::affine;
  if (scales.shape() != groups || !(affine ? is_float(scales.dtype()) : scales.dtype() == mx::uint8)) {
    const char* wanted = affine ? " of a float type" : " uint8";
    fail_op(op, "scales must be ", groups, wanted, "; got ", scales.shape(), " ", scales.dtype());
  }
  if (affine != biases.has_value()) {
    fail_op(op, affine ? "affine codes have biases" : "only affine codes have biases");
  }
  if (affine && (biases->shape() != groups || biases->dtype() != scales.dtype())) {
    const auto type = scales.dtype();
    fail_op(op, "biases must be ", groups, " ", type, "; got ", biases->shape(), " ", biases->dtype());
  }
  const size_t matrices = groups.size() > 2 ? groups[0] : 1;
  if (global_scale && (affine || global_scale->dtype() != mx::float32 || global_scale->size() != matrices)) {
    fail_op(op, "a global scale must be one float32 a matrix of small floats; got ", global_scale->shape());
  }
}

} // namespace parallm::cpu

#include "models/gguf.h"

#include "base/error.h"
#include "models/gguf_names.h"
#include "models/gguf_tensors.h"
#include "models/gguf_types.h"
#include "nn/device.h"

#include <set>

namespace parallm {

namespace {

/** Tensors that config_of has turned into fields. */
const std::set<std::string> in_config = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"};

/** The order that llama.cpp's converters undo: they put RoPE's pairs of q's and k's rows side by side, and here the
 * first halves of a head's pairs come before the second ones again. */
std::vector<int> unpaired(int rows, int heads) {
  int pairs = rows / heads / 2;
  std::vector<int> order;
  for (int row = 0; row < rows; ++row) {
    int head = row / (2 * pairs), half = row / pairs % 2, pair = row % pairs;
    order.push_back((head * pairs + pair) * 2 + half);
  }
  return order;
}

class Loader {
 public:
  Loader(const GgufArchitecture& architecture, const GgufContents& contents, GgufFile& file)
      : architecture_(architecture), metadata_(contents.metadata), file_(file) {}

  void load(const GgufTensor& tensor) {
    if (in_config.contains(tensor.name)) {
      return;
    }
    auto name = hf_name(architecture_, tensor.name);
    auto dot = name.rfind('.');
    auto layer = name.substr(0, dot);
    bool weight = name.ends_with(".weight");
    auto order = row_order(tensor);
    if (tensor.shape.size() < 2 || !weight) {
      put(name, small(tensor, order));
      return;
    }
    if (name.ends_with("conv.conv.weight")) {
      put(name, mx::expand_dims(dequantize_gguf(tensor), 1)); // [D,L] -> torch's [D,1,L]
      return;
    }
    if (split_heads(tensor, layer) || join_latent(tensor, layer)) {
      return;
    }
    auto arrays = read_gguf_tensor(tensor, {.groups_of_16 = on_cpu(), .order = std::move(order)});
    put(name, arrays.weight);
    if (arrays.quantization) {
      put(layer + ".scales", *arrays.scales);
      file_.quantizations.layers[layer] = arrays.quantization;
      if (arrays.biases) {
        put(layer + ".biases", *arrays.biases);
      }
    }
  }

 private:
  void put(const std::string& name, const mx::array& array) {
    if (!file_.arrays.emplace(name, array).second) {
      fail(Kind::invalid, "[open_checkpoint] two of the GGUF file's tensors become {}", name);
    }
  }

  /** Norms, biases and the like: dense. */
  mx::array small(const GgufTensor& tensor, const std::vector<int>& order) {
    auto array = tensor.type->dtype ? read_gguf_tensor(tensor, {}).weight : dequantize_gguf(tensor);
    if (tensor.name.ends_with("ffn_gate_inp_shexp.weight")) {
      array = mx::expand_dims(array, 0); // a Linear of one output
    }
    if (!order.empty()) {
      array = mx::take(array, mx::array(order.data(), {int(order.size())}, mx::int32), 0);
    }
    if (architecture_.norms_plus_one && tensor.name.ends_with("norm.weight")) {
      array = mx::subtract(array, mx::array(1.0f));
    }
    return array;
  }

  std::vector<int> row_order(const GgufTensor& tensor) const {
    bool q = tensor.name.find(".attn_q.") != std::string::npos;
    bool k = tensor.name.find(".attn_k.") != std::string::npos;
    if (!architecture_.paired_rope || !(q || k) || tensor.shape.empty()) {
      return {};
    }
    auto count = gguf_key(metadata_, "attention.head_count");
    int heads = metadata_.integer(count);
    heads = k ? metadata_.integer(count + "_kv", heads) : heads;
    int rows = tensor.shape[0];
    if (heads <= 0 || rows % (2 * heads) != 0) {
      fail(Kind::invalid, "[open_checkpoint] tensor {} has {} rows, which aren't {} heads", tensor.name, rows, heads);
    }
    return unpaired(rows, heads);
  }

  /** StableLM's norm for each head, [heads, D], is a tensor for each there. */
  bool split_heads(const GgufTensor& tensor, const std::string& layer) {
    bool q = tensor.name.ends_with(".attn_q_norm.weight");
    if (std::string_view(architecture_.architecture) != "stablelm" ||
        !(q || tensor.name.ends_with(".attn_k_norm.weight"))) {
      return false;
    }
    auto all = dequantize_gguf(tensor);
    auto base = layer.substr(0, layer.rfind('.')) + (q ? ".q_layernorm" : ".k_layernorm");
    for (int i = 0; i < tensor.shape[0]; ++i) {
      put(fmt::format("{}.norms.{}.weight", base, i), mx::take(all, i, 0));
    }
    return true;
  }

  /** DeepSeek V2's kv_b_proj, [heads * (nope + v), rank], of the two that newer files have: k's [heads, rank, nope] and
   * v's [heads, v, rank]. Its rows would cross groups, so it is dense. */
  bool join_latent(const GgufTensor& tensor, const std::string& layer) {
    bool k = tensor.name.ends_with(".attn_k_b.weight");
    if (std::string_view(architecture_.model_type) != "deepseek_v2" ||
        !(k || tensor.name.ends_with(".attn_v_b.weight"))) {
      return false;
    }
    if (tensor.shape.size() != 3) {
      fail(Kind::invalid, "[open_checkpoint] tensor {} must have 3 axes; got {}", tensor.name, tensor.shape.size());
    }
    auto half = dequantize_gguf(tensor);
    if (k) {
      half = mx::swapaxes(half, 1, 2);
    }
    auto name = layer.substr(0, layer.rfind('.')) + ".kv_b_proj.weight";
    auto [other, first] = halves_.emplace(name, half);
    if (!first) {
      auto both = k ? std::vector<mx::array>{half, other->second} : std::vector<mx::array>{other->second, half};
      auto joined = mx::flatten(mx::concatenate(both, 1), 0, 1);
      mx::eval(joined); // so that the halves go
      halves_.erase(other);
      put(name, joined);
    }
    return true;
  }

  const GgufArchitecture& architecture_;
  const GgufMetadata& metadata_;
  GgufFile& file_;
  std::map<std::string, mx::array> halves_;
};

mx::Dtype best_dtype(const GgufArchitecture& architecture, const GgufContents& contents) {
  std::map<mx::Dtype::Val, size_t> weights;
  size_t all = 0;
  for (auto& tensor : contents.tensors) {
    size_t count = tensor.bytes / tensor.type->bytes * tensor.type->weights;
    all += count;
    if (tensor.type->dtype) {
      weights[tensor.type->dtype->val()] += count;
    }
  }
  for (auto dtype : {mx::float32, mx::bfloat16}) {
    if (weights[dtype.val()] > all / 2) {
      return dtype;
    }
  }
  return architecture.wide_range ? mx::bfloat16 : mx::float16;
}

} // namespace

GgufFile read_gguf(const std::string& path) {
  auto contents = open_gguf_contents(path);
  auto& architecture = find_gguf_architecture(contents.metadata);
  GgufFile file;
  file.config = {gguf_config(architecture, contents), "gguf"};
  const auto token = [&](const char* name) {
    return contents.metadata.integer(fmt::format("tokenizer.ggml.{}_token_id", name), -1);
  };
  file.bos_id = token("bos");
  for (auto* name : {"eos", "eot", "eom"}) {
    if (auto id = token(name); id >= 0) {
      file.eos_ids.push_back(id);
    }
  }
  file.dtype = best_dtype(architecture, contents);
  Loader loader(architecture, contents, file);
  for (auto& tensor : contents.tensors) {
    loader.load(tensor);
  }
  return file;
}

} // namespace parallm

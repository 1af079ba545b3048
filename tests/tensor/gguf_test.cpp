// Our GGUF reader against files that the gguf package wrote (tools/golden_gguf.py).
#include "golden.h"
#include "kernels/cpu/ops.h"
#include "models/gguf_names.h"
#include "models/gguf_tensors.h"
#include "models/gguf_types.h"
#include "models/latent_attention.h"
#include "nn/embedding.h"

#include <boost/json/serialize.hpp>
#include <unistd.h>

#include <fstream>

namespace parallm::test {
namespace fs = std::filesystem;

namespace {

const fs::path recorded = "tests/golden"; // what tools/golden_gguf.py wrote
const std::string types_file = (recorded / "gguf_types" / "types.gguf").string();

struct KindCase {
  const GgufTensor* tensor;
  std::vector<float> values;
};

/** Each kind's tensor with what gguf.quants.dequantize says of it. */
std::vector<KindCase> cases(const GgufContents& contents) {
  std::vector<KindCase> out;
  for (auto& tensor : contents.tensors) {
    if (tensor.name.ends_with(".weight")) {
      auto name = tensor.name.substr(0, tensor.name.size() - 7) + ".values";
      auto* values = find_gguf_tensor(contents, name);
      REQUIRE(values);
      out.push_back({&tensor, floats(dequantize_gguf(*values))});
    }
  }
  return out;
}

/** What the layers' kernels make of the arrays: the identity times the matrix. */
std::vector<float> by_kernel(const GgufArrays& arrays, int inputs) {
  auto eye = mx::eye(inputs);
  auto& how = *arrays.quantization;
  auto y = arrays.biases
      ? cpu::quantized_matmul(eye, arrays.weight, *arrays.scales, *arrays.biases, how.group_size, how.bits)
      : mx::quantized_matmul(eye, arrays.weight, *arrays.scales, {}, true, how.group_size, how.bits, how.mode);
  return floats(mx::transpose(y));
}

std::vector<float> by_mlx(const GgufArrays& arrays) {
  auto& how = *arrays.quantization;
  auto wide = [](const std::optional<mx::array>& x) { return x ? std::optional(mx::astype(*x, mx::float32)) : x; };
  auto scales = arrays.biases ? *wide(arrays.scales) : *arrays.scales;
  return floats(
      mx::dequantize(arrays.weight, scales, wide(arrays.biases), how.group_size, how.bits, how.mode, {}, mx::float32));
}

std::string error_of(const std::string& path) {
  try {
    read_gguf(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/** A file of our own making, gone at the end. */
struct Scratch {
  explicit Scratch(const std::string& name)
      : path((fs::temp_directory_path() / fmt::format("parallm_{}_{}.gguf", name, ::getpid())).string()) {}
  ~Scratch() {
    fs::remove(path);
  }
  void write(const std::string& bytes) const {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  std::string path;
};

} // namespace

TEST_CASE("gguf: every kind's weights are bit for bit ggml's, alone and through the kernels") {
  auto contents = open_gguf_contents(types_file);
  auto all = cases(contents);
  CHECK(all.size() == 17);
  for (auto& [tensor, values] : all) {
    CAPTURE(tensor->name);
    CHECK(floats(dequantize_gguf(*tensor)) == values);
    auto arrays = read_gguf_tensor(*tensor, {.groups_of_16 = true});
    if (!arrays.quantization) {
      CHECK(floats(arrays.weight) == values);
      continue;
    }
    CHECK(by_kernel(arrays, tensor->shape.back()) == values);
    if (arrays.quantization->group_size >= 32) {
      CHECK(by_mlx(arrays) == values);
    }
  }
}

TEST_CASE("gguf: factors are float16 where that holds them") {
  auto contents = open_gguf_contents(types_file);
  for (auto& [tensor, values] : cases(contents)) {
    CAPTURE(tensor->name);
    auto arrays = read_gguf_tensor(*tensor, {.groups_of_16 = true});
    if (arrays.biases) {
      bool wide = tensor->type->wide || tensor->name == "huge.weight";
      CHECK(arrays.scales->dtype() == (wide ? mx::float32 : mx::float16));
    }
  }
}

TEST_CASE("gguf: without groups of 16 the error is within half a step of the new codes") {
  auto contents = open_gguf_contents(types_file);
  int coarse = 0;
  for (auto& [tensor, values] : cases(contents)) {
    CAPTURE(tensor->name);
    auto arrays = read_gguf_tensor(*tensor, {.groups_of_16 = false});
    if (!tensor->type->coarse_bits) {
      continue;
    }
    ++coarse;
    REQUIRE(arrays.quantization->group_size == 32);
    REQUIRE(arrays.quantization->bits == tensor->type->coarse_bits);
    auto got = by_mlx(arrays);
    auto scales = floats(*arrays.scales);
    auto exact = read_gguf_tensor(*tensor, {.groups_of_16 = true});
    auto own = floats(*exact.scales);
    for (size_t i = 0; i < values.size(); ++i) {
      double error = std::abs(double(got[i]) - values[i]);
      CHECK(error <= scales[i / 32] * 0.5001 + 1e-7);
      // Both groups' steps share the new range, so it is the larger that counts; minima of their own widen Q2_K's.
      double step = std::max(std::abs(own[i / 32 * 2]), std::abs(own[i / 32 * 2 + 1]));
      if (tensor->type->name != std::string("Q2_K")) {
        CHECK(error <= step / 8 + 1e-7);
      }
    }
  }
  CHECK(coarse == 3);
}

TEST_CASE("gguf: an embedding of each kind gives its rows") {
  auto contents = open_gguf_contents(types_file);
  for (auto& [tensor, values] : cases(contents)) {
    CAPTURE(tensor->name);
    if (tensor->type->coarse_bits && !on_cpu()) {
      continue; // not exact there
    }
    auto arrays = read_gguf_tensor(*tensor, {.groups_of_16 = on_cpu()});
    std::unordered_map<std::string, mx::array> named{{"e.weight", arrays.weight}};
    Quantizations quantizations;
    if (arrays.quantization) {
      named.emplace("e.scales", *arrays.scales);
      quantizations.layers["e"] = arrays.quantization;
    }
    if (arrays.biases) {
      named.emplace("e.biases", *arrays.biases);
    }
    Weights weights(named, quantizations, mx::float32);
    int width = tensor->shape.back();
    Embedding embedding(weights, "e", 3, width);
    auto got = floats(embedding(mx::array({2, 0}, mx::int32)));
    CHECK(std::equal(got.begin(), got.begin() + width, values.begin() + 2 * width));
    CHECK(std::equal(got.begin() + width, got.end(), values.begin()));
  }
}

namespace {

LatentArgs latent_args(int rank, int nope, int v) {
  return LatentArgs(Config{
      {{"hidden_size", 64},
       {"num_attention_heads", 1},
       {"kv_lora_rank", rank},
       {"qk_nope_head_dim", nope},
       {"qk_rope_head_dim", 2},
       {"v_head_dim", v}}});
}

} // namespace

TEST_CASE("gguf: DeepSeek V3's kv_b_proj is quantized again as it was") {
  const Quantization how{32, 4};
  Weights weights({}, {}, mx::float32); // no kind for all layers, as a GGUF file has none
  weights.put_quantized("a.kv_b_proj", mx::random::normal({64, 64}), how);
  split_kv_b(weights, "a", latent_args(64, 32, 32), true);
  CHECK(weights.quantization("a.embed_q", 32) == how);
  CHECK(weights.quantization("a.unembed_out", 64) == how);
  weights.take("a.embed_q.weight", {1, 64, 4});
  weights.take("a.unembed_out.weight", {1, 32, 8});
}

TEST_CASE("gguf: DeepSeek's kv_b_proj of each kind is split without loss") {
  const auto args = latent_args(256, 2, 1);
  auto contents = open_gguf_contents(types_file);
  int split = 0;
  for (auto& [tensor, values] : cases(contents)) {
    CAPTURE(tensor->name);
    auto arrays = read_gguf_tensor(*tensor, {.groups_of_16 = on_cpu()});
    if (!arrays.quantization || (!on_cpu() && tensor->type->group == 16)) {
      continue;
    }
    ++split;
    std::unordered_map<std::string, mx::array> named{
        {"a.kv_b_proj.weight", arrays.weight}, {"a.kv_b_proj.scales", *arrays.scales}};
    if (arrays.biases) {
      named.emplace("a.kv_b_proj.biases", *arrays.biases);
    }
    Weights weights(named, {{}, {{"a.kv_b_proj", arrays.quantization}}}, mx::float32);
    split_kv_b(weights, "a", args, false);
    // embed_q is k's two rows, transposed.
    auto k = floats(mx::transpose(weights.take("a.embed_q.weight", {1, 256, 2}), {0, 2, 1}));
    auto v = floats(weights.take("a.unembed_out.weight", {1, 1, 256}));
    CHECK(std::equal(k.begin(), k.end(), values.begin()));
    CHECK(std::equal(v.begin(), v.end(), values.begin() + 512));
    weights.finish();
  }
  CHECK(split >= 10);
}

TEST_CASE("gguf: rows in another order") {
  auto contents = open_gguf_contents(types_file);
  for (auto& [tensor, values] : cases(contents)) {
    CAPTURE(tensor->name);
    auto arrays = read_gguf_tensor(*tensor, {.groups_of_16 = true, .order = {2, 0, 1}});
    auto got = arrays.quantization ? by_kernel(arrays, tensor->shape.back()) : floats(arrays.weight);
    size_t width = tensor->shape.back();
    for (size_t row = 0; row < 3; ++row) {
      auto from = values.begin() + (row + 2) % 3 * width;
      CHECK(std::equal(from, from + width, got.begin() + row * width));
    }
  }
}

TEST_CASE("gguf: a damaged header is an error or another file, never a crash") {
  auto whole = bytes_of(recorded / "gguf_names" / "llama.gguf");
  size_t header = open_gguf_contents((recorded / "gguf_names" / "llama.gguf").string()).tensors[0].offset;
  Scratch scratch("damaged");
  int errors = 0;
  for (size_t at = 0; at < header; ++at) {
    for (int change : {0xff, 0x80, 0x01}) {
      auto broken = whole;
      broken[at] ^= change;
      scratch.write(broken);
      errors += error_of(scratch.path) != "no error";
    }
  }
  CHECK(errors > int(header)); // bytes of names and numbers may change unseen
  for (size_t size = 0; size < whole.size(); size += 97) {
    scratch.write(whole.substr(0, size));
    CAPTURE(size);
    CHECK(error_of(scratch.path).find("an incomplete download?") != std::string::npos);
  }
}

TEST_CASE("gguf: what can't be read is named") {
  auto whole = bytes_of(recorded / "gguf_names" / "qwen2.gguf");
  Scratch scratch("kind");
  auto changed = [&](const std::string& from, const std::string& to) {
    auto text = whole;
    auto at = text.find(from);
    REQUIRE(at != std::string::npos);
    scratch.write(text.replace(at, from.size(), to));
    return error_of(scratch.path);
  };
  CHECK(changed("qwen2", "qwenX").find("must be one of llama, qwen2") != std::string::npos);
  CHECK(changed("qwen2.block_count", "qwen2.block_bount").find("'qwen2.block_count' is missing") != std::string::npos);
  auto big = whole;
  std::reverse(big.begin() + 4, big.begin() + 8);
  scratch.write(big);
  CHECK(error_of(scratch.path).find("big-endian") != std::string::npos);
  // The kind stands behind the name, the number of dimensions and the two dimensions.
  auto kind = whole;
  std::string name = "token_embd.weight";
  auto at = kind.find(name);
  REQUIRE(at != std::string::npos);
  kind[at + name.size() + 4 + 16] = 28;
  scratch.write(kind);
  CHECK(
      error_of(scratch.path).find("tensor token_embd.weight has the kind F64; the kinds that can be read are F32") !=
      std::string::npos);
}

TEST_CASE("gguf: a file in parts is one model, whichever part is named") {
  auto whole = read_gguf((recorded / "gguf_names" / "qwen2.gguf").string());
  auto folder = fs::temp_directory_path() / fmt::format("parallm_parts_{}", ::getpid());
  fs::remove_all(folder);
  fs::create_directories(folder);
  std::vector<fs::path> parts;
  for (auto& entry : fs::directory_iterator(recorded / "gguf_names")) {
    if (entry.path().filename().string().starts_with("parts-")) {
      parts.push_back(folder / entry.path().filename());
      fs::copy(entry.path(), parts.back());
    }
  }
  std::sort(parts.begin(), parts.end());
  REQUIRE(parts.size() == 3);
  for (auto& part : parts) {
    auto file = read_gguf(part.string());
    CHECK(file.config.json == whole.config.json);
    REQUIRE(file.arrays.size() == whole.arrays.size());
    for (auto& [name, array] : whole.arrays) {
      CHECK(floats(file.arrays.at(name)) == floats(array));
    }
  }
  fs::rename(parts[1], folder / "elsewhere.gguf");
  CHECK(error_of(parts[0].string()).find("parts-00002-of-00003.gguf is missing") != std::string::npos);
  CHECK(error_of((folder / "elsewhere.gguf").string()).find("must end in -00001-of-00003.gguf") != std::string::npos);
  fs::copy(parts[2], parts[1]);
  CHECK(error_of(parts[0].string()).find("must be part 1 of 3") != std::string::npos);
  fs::remove_all(folder);
}

namespace {

/** golden_gguf.py's `values`. */
std::vector<float> expected(const std::string& name, size_t count) {
  size_t start = 0;
  for (unsigned char letter : name) {
    start += letter * 11;
  }
  std::vector<float> out;
  for (size_t i = 0; i < count; ++i) {
    out.push_back((int((i * 37 + start) % 251) - 125) / 64.0f);
  }
  return out;
}

bool same(const boost::json::value& a, const boost::json::value& b) {
  if (a.is_number() && b.is_number()) {
    return std::abs(a.to_number<double>() - b.to_number<double>()) <= 1e-6 * std::abs(a.to_number<double>());
  }
  if (a.is_array() && b.is_array()) {
    return a.get_array().size() == b.get_array().size() &&
        std::equal(a.get_array().begin(), a.get_array().end(), b.get_array().begin(), same);
  }
  if (a.is_object() && b.is_object()) { // ours may say more
    return std::all_of(a.get_object().begin(), a.get_object().end(), [&](auto& pair) {
      auto* other = b.get_object().if_contains(pair.key());
      return other && same(pair.value(), *other);
    });
  }
  return a == b;
}

} // namespace

TEST_CASE("gguf: each architecture's names, values and config.json are Hugging Face's") {
  int models = 0;
  for (auto& entry : fs::directory_iterator(recorded / "gguf_names")) {
    if (entry.path().extension() != ".json") {
      continue;
    }
    ++models;
    CAPTURE(entry.path().string());
    auto wanted = read_config(entry.path().string());
    auto path = entry.path();
    auto file = read_gguf(path.replace_extension(".gguf").string());
    auto config = wanted.object("config");
    for (auto& [field, value] : config.json) {
      auto* ours = file.config.json.if_contains(field);
      CAPTURE(std::string(field));
      CAPTURE(boost::json::serialize(value));
      REQUIRE(ours);
      CAPTURE(boost::json::serialize(*ours));
      CHECK(same(value, *ours));
    }
    auto tensors = wanted.object("tensors");
    CHECK(file.arrays.size() == tensors.json.size());
    for (auto& [name, shape] : tensors.json) {
      CAPTURE(std::string(name));
      auto found = file.arrays.find(std::string(name));
      REQUIRE(found != file.arrays.end());
      auto ints = tensors.integers(name);
      CHECK(found->second.shape() == mx::Shape(ints.begin(), ints.end()));
      CHECK(floats(found->second) == expected(std::string(name), found->second.size()));
    }
  }
  CHECK(models == 23);
}

namespace {

/** Logits of a short prompt; nothing where the model_type isn't among ours. */
std::optional<std::vector<float>> logits_of(const Config& config, Weights weights) {
  std::unique_ptr<Model> model;
  try {
    model = make_model(config, weights);
  } catch (const Error& error) {
    bool unknown = std::string_view(error.what()).find("'model_type' must be one of") != std::string_view::npos;
    CAPTURE(std::string(error.what()));
    CHECK(unknown);
    return {};
  }
  auto caches = make_paged_caches(model->cache_specs(), {.block_size = 4, .blocks = 16, .dtype = mx::float32});
  std::vector<Span> spans{{0, 5, 0, block_range(1, 4), 5}};
  caches->begin(spans);
  auto hidden = model->hidden(mx::array({1, 7, 3, 9, 4}, mx::int32), *caches);
  return floats(model->logits(hidden));
}

} // namespace

TEST_CASE("gguf: each architecture that we have computes from a GGUF file what it does from a folder") {
  std::string run;
  for (auto& entry : fs::directory_iterator(recorded / "gguf_names")) {
    auto path = entry.path();
    if (path.extension() != ".json") {
      continue;
    }
    CAPTURE(path.string());
    auto folder = read_config(path.string());
    auto file = read_gguf(path.replace_extension(".gguf").string());
    std::unordered_map<std::string, mx::array> arrays;
    for (auto& [name, array] : file.arrays) {
      auto values = expected(name, array.size());
      arrays.emplace(name, mx::astype(mx::array(values.data(), array.shape(), mx::float32), array.dtype()));
    }
    auto wanted = logits_of(folder.object("config"), Weights(arrays, {}, mx::float32));
    if (!wanted) {
      continue;
    }
    auto got = logits_of(file.config, Weights(file.arrays, file.quantizations, mx::float32));
    REQUIRE(got);
    run += " " + path.stem().string();
    CHECK(std::all_of(wanted->begin(), wanted->end(), [](float x) { return std::isfinite(x); }));
    CHECK(std::adjacent_find(wanted->begin(), wanted->end(), std::not_equal_to<>()) != wanted->end());
    REQUIRE(got->size() == wanted->size());
    for (size_t i = 0; i < got->size(); ++i) {
      CHECK((*got)[i] == doctest::Approx((*wanted)[i]).epsilon(1e-5));
    }
  }
  MESSAGE("architectures:", run);
  CHECK(run.find(" llama") != std::string::npos);
}

TEST_CASE("gguf: the activations' dtype") {
  auto dtype = [](const char* name) { return read_gguf((recorded / "gguf_names" / name).string()).dtype; };
  CHECK(dtype("qwen2.gguf") == mx::float16);
  CHECK(dtype("gemma3.gguf") == mx::bfloat16); // float16 overflows in it
}

} // namespace parallm::test

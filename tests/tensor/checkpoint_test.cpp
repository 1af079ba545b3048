#include "golden.h"

#include "base/error.h"
#include "models/gguf_text.h"

#include <unistd.h>

#include <fstream>

namespace parallm::test {
namespace fs = std::filesystem;

namespace {

/** A writable copy of a golden checkpoint. */
struct Copy {
  explicit Copy(const std::string& name)
      : folder(fs::temp_directory_path() / fmt::format("parallm_{}_{}", name, ::getpid())) {
    fs::remove_all(folder);
    fs::copy(golden_folder / name, folder);
    fs::remove(folder / "reference.safetensors");
  }
  ~Copy() {
    fs::remove_all(folder);
  }

  std::string path(const std::string& file = "") const {
    return (folder / file).string();
  }
  void write(const std::string& file, const std::string& text) const {
    std::ofstream(folder / file, std::ios::binary) << text;
  }
  void edit(const std::string& from, const std::string& to) const {
    std::ifstream in(folder / "config.json");
    std::string text{std::istreambuf_iterator<char>(in), {}};
    auto at = text.find(from);
    REQUIRE(at != std::string::npos);
    write("config.json", text.replace(at, from.size(), to));
  }

  fs::path folder;
};

std::string message(const std::string& path) {
  try {
    auto checkpoint = open_checkpoint(path);
    make_model(checkpoint.config, checkpoint.weights);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

#define CHECK_HAS(text, part)                          \
  do {                                                 \
    const std::string error_text = text;               \
    CAPTURE(error_text);                               \
    CHECK(error_text.find(part) != std::string::npos); \
  } while (false)

} // namespace

TEST_CASE("checkpoint: end ids come from generation_config.json first") {
  Copy copy("llama");
  CHECK(open_checkpoint(copy.path()).eos_ids == std::vector<int>{2, 5});
  CHECK(open_checkpoint(copy.path()).bos_id == 1);
  copy.write("generation_config.json", R"({"eos_token_id": 7, "temperature": 0.6, "top_p": 0.9, "top_k": 20})");
  auto checkpoint = open_checkpoint(copy.path());
  CHECK(checkpoint.eos_ids == std::vector<int>{7});
  CHECK(checkpoint.generation.temperature == 0.6f);
  CHECK(checkpoint.generation.top_p == 0.9f);
  CHECK(checkpoint.generation.top_k == 20);
  CHECK(!checkpoint.generation.repetition_penalty);
}

TEST_CASE("checkpoint: dtypes") {
  auto checkpoint = open_checkpoint((golden_folder / "llama_head_dim").string());
  CHECK(checkpoint.stored_dtype == mx::bfloat16);
  CHECK(checkpoint.kv_dtype == mx::bfloat16);
  if (mx::default_device() == mx::Device::cpu) {
    CHECK(checkpoint.dtype == mx::float32);
  }
  auto forced = open_checkpoint((golden_folder / "llama_head_dim").string(), {.dtype = mx::float16});
  CHECK(forced.dtype == mx::float16);
  CHECK(forced.kv_dtype == mx::float16);
}

TEST_CASE("checkpoint: a GGUF file brings its tokenizer") {
  const auto path = (golden_folder / "llama_gguf" / "model.gguf").string();
  const auto tokenizer = read_gguf_tokenizer(path);
  CHECK(tokenizer.model == "gpt2");
  CHECK(tokenizer.pre == "smollm");
  CHECK(tokenizer.tokens.size() == 96);
  CHECK(tokenizer.tokens[3] == "t3");
  CHECK(tokenizer.types.size() == 96);
  CHECK(tokenizer.merges == std::vector<std::string>{"t 0", "t 1"});
  CHECK(tokenizer.chat_template == "{{ messages }}");
  const auto checkpoint = open_checkpoint(path);
  CHECK(checkpoint.eos_ids == std::vector<int>{2, 5});
  CHECK(checkpoint.bos_id == 1);
}

TEST_CASE("checkpoint: errors say what is wrong with which file") {
  CHECK_HAS(message("/no/such/model"), "no such file or folder");
  {
    Copy copy("llama_mha");
    copy.edit("\"llama\"", "\"lama\"");
    auto error = message(copy.path());
    CHECK_HAS(error, "'model_type' must be one of ");
    CHECK_HAS(error, ", mistral, ");
    CHECK_HAS(error, "; got 'lama'");
  }
  {
    Copy copy("llama_mha");
    copy.edit("\"hidden_size\": 64", "\"hidden_size\": \"64\"");
    CHECK_HAS(message(copy.path()), "'hidden_size' must be a 32-bit integer");
  }
  {
    Copy copy("llama_mha");
    copy.write("config.json", "{\"model_type\": ");
    CHECK_HAS(message(copy.path()), "config.json is not JSON");
    fs::remove(copy.folder / "config.json");
    CHECK_HAS(message(copy.path()), "no config.json in");
  }
  {
    Copy copy("llama_mha");
    fs::remove(copy.folder / "model.safetensors");
    CHECK_HAS(message(copy.path()), "no model*.safetensors");
  }
  {
    Copy copy("llama_sharded");
    fs::remove(copy.folder / "model-00002-of-00002.safetensors");
    CHECK_HAS(message(copy.path()), "00002-of-00002.safetensors is missing");
  }
  {
    Copy copy("llama_rope_linear");
    copy.edit("\"linear\"", "\"curved\"");
    auto error = message(copy.path());
    CHECK_HAS(error, "rope type must be one of default, linear, dynamic, llama3, yarn, ");
    CHECK_HAS(error, "; got 'curved'");
  }
  {
    Copy copy("phi3small"); // mlx-lm leaves it out, and computes something else
    copy.edit("\"hidden_act\"", "\"rope_scaling\": {\"type\": \"su\"}, \"hidden_act\"");
    CHECK_HAS(message(copy.path()), "'rope_scaling' must be absent");
  }
}

TEST_CASE("checkpoint: a cut or damaged file is an error, never a crash") {
  for (std::string name : {"llama_mha", "llama_gguf"}) {
    Copy copy(name);
    auto file = name == "llama_gguf" ? "model.gguf" : "model.safetensors";
    auto path = name == "llama_gguf" ? copy.path(file) : copy.path();
    std::ifstream in(copy.path(file), std::ios::binary);
    std::string whole{std::istreambuf_iterator<char>(in), {}};
    for (size_t size :
         {size_t(0),
          size_t(3),
          size_t(11),
          size_t(100),
          size_t(700),
          size_t(2000),
          whole.size() / 2,
          whole.size() - 1}) {
      CAPTURE(name);
      CAPTURE(size);
      copy.write(file, whole.substr(0, size));
      CHECK_HAS(message(path), "an incomplete download?");
    }
    auto broken = whole;
    std::fill_n(broken.begin() + 8, 8, '\xff');
    copy.write(file, broken);
    CHECK(message(path) != "no error");
  }
}

TEST_CASE("weights: everything that doesn't fit is listed at once") {
  Copy copy("llama_biases"); // has tensors that a model without the biases' flags uses too
  auto arrays = mx::load_safetensors(copy.path("model.safetensors")).first;
  arrays.erase("model.norm.weight");
  arrays.insert_or_assign("model.surplus", mx::zeros({2}));
  arrays.insert_or_assign("lm_head.weight", mx::zeros({96, 64}));
  arrays.insert_or_assign("model.layers.0.self_attn.rotary_emb.inv_freq", mx::zeros({8}));
  arrays.insert_or_assign("model.rotary_emb.cos_cached", mx::zeros({8}));
  arrays.insert_or_assign("model.layers.1.mlp.up_proj.weight", mx::zeros({3, 4}));
  mx::save_safetensors(copy.path("model.safetensors"), arrays);
  auto said = message(copy.path());
  CHECK_HAS(said, "1 missing: model.norm.weight");
  CHECK_HAS(said, "1 that the model doesn't know: model.surplus");
  CHECK_HAS(said, "model.layers.1.mlp.up_proj.weight wants [96, 64], got [3, 4]");
  CHECK(said.find("lm_head") == std::string::npos);
  CHECK(said.find("rotary_emb") == std::string::npos);
}

TEST_CASE("weights: MiniCPM's output layer is the embedding where there is no other, whatever config.json says") {
  Copy copy("minicpm");
  auto arrays = mx::load_safetensors(copy.path("model.safetensors")).first;
  const auto embedding = arrays.at("model.embed_tokens.weight");
  auto sequence = references("minicpm")[1];
  const auto logits = [&] {
    mx::save_safetensors(copy.path("model.safetensors"), arrays);
    Loaded loaded(copy.path());
    return alone(loaded, sequence, 1000);
  };
  arrays.insert_or_assign("lm_head.weight", embedding);
  auto wanted = logits();
  arrays.erase("lm_head.weight");
  CHECK(logits() == wanted);
}

TEST_CASE("weights: quantized tensors without a quantization are an error") {
  Copy copy("llama_quantized_8");
  copy.edit("\"quantization\"", "\"quantisation\"");
  copy.edit("\"quantization_config\"", "\"quantisation_config\"");
  CHECK_HAS(message(copy.path()), "that the model doesn't know");
}

} // namespace parallm::test

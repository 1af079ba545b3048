// Safetensors there and back, the mapping, and what loading costs in memory.
#include "golden.h"

#include "models/mapped_array.h"
#include "models/safetensors.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>

namespace parallm::test {
namespace fs = std::filesystem;

namespace {

struct Folder {
  explicit Folder(const char* name) : path(fs::temp_directory_path() / fmt::format("parallm_{}_{}", name, ::getpid())) {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Folder() {
    fs::remove_all(path);
  }
  std::string operator/(const std::string& name) const {
    return (path / name).string();
  }

  fs::path path;
};

bool equal_arrays(const mx::array& a, const mx::array& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() && mx::array_equal(a, b).item<bool>();
}

/** A file of one hand-written header and `data` zeros. */
std::string file_of(const Folder& folder, const std::string& header, size_t data) {
  const uint64_t length = header.size();
  std::ofstream out(folder / "a.safetensors", std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), sizeof(length));
  out << header << std::string(data, '\0');
  return folder / "a.safetensors";
}

std::string message(const std::string& path) {
  try {
    read_safetensors(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

} // namespace

TEST_CASE("safetensors: what is written comes back, in MLX too") {
  Folder folder("safetensors");
  const std::vector<NamedArray> tensors{
      {"odd", mx::astype(mx::arange(7), mx::bfloat16)},
      {"byte", mx::array({1, 2, 3}, mx::uint8)},
      {"computed", mx::add(mx::ones({3, 5}), mx::ones({5}))},
      {"transposed", mx::transpose(mx::reshape(mx::arange(12), {3, 4}))},
      {"empty", mx::zeros({0, 4}, mx::float16)},
      {"scalar", mx::array(7, mx::int64)},
      {"flags", mx::array({true, false})}};
  size_t bytes = 0;
  write_safetensors(folder / "a.safetensors", tensors, [&](size_t count) { bytes += count; });
  CHECK(bytes == 7 * 2 + 3 + 15 * 4 + 12 * 4 + 8 + 2);
  auto ours = read_safetensors(folder / "a.safetensors");
  auto [mlx, metadata] = mx::load_safetensors(folder / "a.safetensors");
  CHECK(metadata.at("format") == "mlx");
  REQUIRE(ours.size() == tensors.size());
  REQUIRE(mlx.size() == tensors.size());
  for (auto& [name, array] : tensors) {
    CAPTURE(name);
    CHECK(equal_arrays(ours.at(name), *array));
    CHECK(equal_arrays(mlx.at(name), *array));
  }
  CHECK_THROWS_AS(write_safetensors(folder / "none/a.safetensors", tensors), Error);
}

TEST_CASE("safetensors: on a CPU tensors are pieces of the mapped file, and outlive their reader") {
  if (mx::default_device() != mx::Device::cpu) {
    return;
  }
  Folder folder("mapped");
  const auto path = folder / "a.safetensors";
  write_safetensors(path, {{"a", mx::arange(5000)}, {"b", mx::astype(mx::arange(64), mx::uint8)}});
  auto file = std::make_shared<const MappedFile>(path);
  const auto* begin = reinterpret_cast<const char*>(file->data());
  const auto shared = mapped_array(file, 64, {16}, mx::uint8);
  CHECK(shared.data<char>() == begin + 64);
  const auto unaligned = mapped_array(file, 65, {16}, mx::int32);
  CHECK(unaligned.data<char>() != begin + 65);
  CHECK(std::memcmp(unaligned.data<char>(), begin + 65, 64) == 0);
  CHECK_THROWS_AS(mapped_array(file, file->size() - 3, {1}, mx::int32), Error);
  file.reset();

  auto a = read_safetensors(path).at("a");
  fs::remove(path);
  CHECK(equal_arrays(a, mx::arange(5000)));
  // An op may reuse its input's memory only where MLX allocated it: the mapping is read-only.
  auto more = mx::add(std::move(a), mx::array(1));
  CHECK(equal_arrays(more, mx::arange(1, 5001)));
}

TEST_CASE("safetensors: a header that lies is an error that names the tensor") {
  Folder folder("lies");
  const auto with = [&](const std::string& entry) { return message(file_of(folder, "{\"w\":" + entry + "}", 64)); };
  CHECK(with(R"({"dtype":"F32","shape":[4,4],"data_offsets":[0,64]})") == "no error");
  const std::vector<std::pair<std::string, std::string>> cases{
      {R"({"dtype":"F32","shape":[4,5],"data_offsets":[0,80]})", "tensor w goes on past the end"},
      {R"({"dtype":"F32","shape":[4,5],"data_offsets":[0,64]})", "tensor w has 64 bytes of 80"},
      {R"({"dtype":"F32","shape":[4,4],"data_offsets":[64,0]})", "tensor w goes on past the end"},
      {R"({"dtype":"F32","shape":[-4,-4],"data_offsets":[0,64]})", "tensor w has an axis of -4"},
      {R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,64]})", "tensor w has an axis"},
      {R"({"dtype":"F3","shape":[4,4],"data_offsets":[0,64]})", "tensor w is of dtype 'F3'"},
      {R"({"shape":[4,4],"data_offsets":[0,64]})", "'dtype' is missing"},
      {R"([])", "tensor w is no JSON object"}};
  for (const auto& [entry, said] : cases) {
    const auto text = with(entry);
    CAPTURE(entry);
    CAPTURE(text);
    CHECK(text.find(said) != std::string::npos);
  }
}

#ifdef __linux__

namespace {

/** The process' greatest resident memory so far, mapped pages included (VmHWM). getrusage's would begin with the
 * parent's. */
size_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) {
      return std::stoull(line.substr(6)) << 10;
    }
  }
  return 0;
}

/** What a process of its own says that loads the folder: the peak after loading, and after a step with all weights. */
std::pair<size_t, size_t> peaks_of(const std::string& folder) {
  ::setenv("PARALLM_PEAK_OF", folder.c_str(), 1);
  const auto self = fs::read_symlink("/proc/self/exe").string();
  FILE* child = ::popen(fmt::format("'{}' --no-skip --test-case='peak memory: child'", self).c_str(), "r");
  REQUIRE(child);
  std::pair<size_t, size_t> out;
  for (char line[256]; std::fgets(line, sizeof(line), child);) {
    std::sscanf(line, "PEAK %zu %zu", &out.first, &out.second);
  }
  CHECK(::pclose(child) == 0);
  return out;
}

/** A llama of about 230 MB in bfloat16. */
size_t write_large(const Folder& folder) {
  const int hidden = 1024, inner = 4096, layers = 6, vocabulary = 8192;
  std::vector<NamedArray> tensors;
  const auto add = [&](const std::string& name, mx::Shape shape) {
    tensors.push_back({name, mx::full(shape, 0.01f, mx::bfloat16)});
  };
  add("model.embed_tokens.weight", {vocabulary, hidden});
  add("model.norm.weight", {hidden});
  for (int i = 0; i < layers; ++i) {
    const auto layer = fmt::format("model.layers.{}.", i);
    for (auto name : {"q", "k", "v", "o"}) {
      add(fmt::format("{}self_attn.{}_proj.weight", layer, name), {hidden, hidden});
    }
    add(layer + "mlp.gate_proj.weight", {inner, hidden});
    add(layer + "mlp.up_proj.weight", {inner, hidden});
    add(layer + "mlp.down_proj.weight", {hidden, inner});
    add(layer + "input_layernorm.weight", {hidden});
    add(layer + "post_attention_layernorm.weight", {hidden});
  }
  write_safetensors(folder / "model.safetensors", std::move(tensors));
  std::ofstream(folder / "config.json") << fmt::format(
      R"({{"model_type": "llama", "hidden_size": {}, "num_hidden_layers": {}, "intermediate_size": {},
          "num_attention_heads": 8, "vocab_size": {}, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}})",
      hidden,
      layers,
      inner,
      vocabulary);
  return fs::file_size(folder / "model.safetensors");
}

} // namespace

TEST_CASE("peak memory: child" * doctest::skip()) {
  const auto* folder = std::getenv("PARALLM_PEAK_OF");
  REQUIRE(folder);
  Loaded loaded(folder, std::nullopt);
  const auto after_loading = peak_bytes();
  step(loaded, {{{1, 2, 3}, 0, {0}, 3}});
  std::printf("PEAK %zu %zu\n", after_loading, peak_bytes());
}

// Both numbers are VmHWM of a process of its own, less what the same process takes for a tiny model; the second, after
// a step that reads every weight, holds the mapped weights themselves.
TEST_CASE("peak memory: loading takes at most 1.15 times the weights") {
  if (mx::default_device() != mx::Device::cpu) {
    return;
  }
  Folder folder("large");
  const auto weights = write_large(folder);
  REQUIRE(weights > 200 << 20);
  const auto small = peaks_of((golden_folder / "llama_head_dim").string());
  const auto large = peaks_of(folder.path.string());
  const auto loading = (double(large.first) - double(small.first)) / weights;
  const auto running = double(large.second - small.second) / weights;
  MESSAGE("peak over the weights' bytes: ", loading, " loaded, ", running, " after a step");
  CHECK(loading <= 1.15);
  CHECK(running >= 0.9); // the step did read them
  CHECK(running <= 1.15);
}

#endif

} // namespace parallm::test

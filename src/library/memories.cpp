// MemoryEncoder with the engine: every tensor is made, used and dropped on its thread, between steps.
#include "library/memories.h"

#include "base/hash.h"
#include "engine/background.h"
#include "engine/reader.h"
#include "engine/runner.h"
#include "library/memory.h"
#include "models/safetensors.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <numeric>

namespace parallm {

namespace fs = std::filesystem;

namespace {

// What has nothing to do with any memory: the background of citations. A document's vector, too, is the mean of its
// values in early layers less that of these texts: the part that every text has. Of 96 made-up facts in 8 forms,
// SmolLM2-135M's vector of a question is nearest to its own fact's in 83 %, and in 86 % where they were read one behind
// another; keys, and later layers, mix a text with its neighbours (75 % and 38 % by keys; chance: 1 %).
constexpr const char* plain_texts[] = {
    "The weather was fine, and they went for a walk along the river.",
    "In the end it is a question of how much time and money there is.",
    "Most of what is written about it was written a long time ago.",
    "She opened the window, sat down at the table and began to read."};
constexpr int most_dimensions = 2000; // of a document's vector: pgvector indexes no more
constexpr int most_embedded_layers = 4;

mx::Dtype dtype_of(const std::string& name) {
  return name == "float32" ? mx::float32 : name == "bfloat16" ? mx::bfloat16 : mx::float16; // also beside codes
}

/** What a failing job leaves behind ends with the job, on its thread: it holds tensors. */
template <typename T>
struct Ending {
  std::unique_ptr<T>& held;
  bool failed = true;
  ~Ending() {
    if (failed) {
      held.reset();
    }
  }
};

/** Of the files that the weights come from. Whole files would take a minute of a large model: pieces spread over each,
 * and its size, tell one training, quantization or merge from another. */
std::string files_fingerprint(const std::string& files) {
  constexpr size_t piece = 4096, pieces = 256;
  std::vector<fs::path> paths;
  if (fs::is_directory(files)) {
    for (auto& entry : fs::directory_iterator(files)) {
      const auto extension = entry.path().extension();
      if (extension == ".safetensors" || entry.path().filename() == "config.json") {
        paths.push_back(entry.path());
      }
    }
  } else {
    paths.emplace_back(files);
  }
  std::sort(paths.begin(), paths.end());
  Hash hash;
  for (const fs::path& path : paths) {
    const auto file = MappedFile::find(path.string());
    const size_t size = file ? file->size() : 0;
    hash.add(fmt::format("{} {} ", path.filename().string(), size));
    const size_t stride = std::max(piece, size / pieces);
    for (size_t at = 0; at < size; at += stride) {
      hash.add(file->text(at, std::min(piece, size - at)));
    }
  }
  return hash.hex();
}

class ModelEncoder : public MemoryEncoder {
 public:
  explicit ModelEncoder(LanguageModel& model)
      : model_(model), dtype_(dtype_of(model.info().kv_dtype)), coded_(model.info().kv_bits > 0) {
    run([&](Model& loaded) { layers_ = static_cast<int>(loaded.cache_specs().size()); });
    for (const char* text : plain_texts) {
      Reading reading;
      reading.ids = model.tokenizer().encode(text, false);
      const auto memory = read(std::move(reading), [](int) {});
      choose_layers(*memory);
      const auto vector = mean_values(*memory);
      plain_.resize(vector.size());
      for (size_t i = 0; i < vector.size(); ++i) {
        plain_[i] += vector[i] / static_cast<float>(std::size(plain_texts));
      }
    }
    const ModelInfo& info = model.info();
    const std::string kind = coded_ ? "8-bit codes" : info.kv_dtype;
    fingerprint_ = sha256(fmt::format("1/{}/{}/{}", files_fingerprint(info.files), info.dtype, kind));
  }

  std::string fingerprint() const override {
    return fingerprint_;
  }
  int layers() const override {
    return layers_;
  }
  int vocabulary() const override {
    return model_.info().vocabulary;
  }
  int max_context() const override {
    return model_.info().max_context;
  }

  std::shared_ptr<const Memory> read(Reading reading, const std::function<void(int)>& progress) override {
    ReadHow how{
        .stride = reading.stride,
        .max_length = reading.max_length,
        .chunk = model_.engine().options().mixed_tokens,
        .dropped = std::move(reading.dropped),
        .dropped_first = reading.dropped_first,
        .coded = coded_};
    return drive<Reader>(
        [&](Model& model) { return std::make_unique<Reader>(model, dtype_, std::move(reading.ids), std::move(how)); },
        [&](const Reader& reader) { progress(reader.done()); });
  }

  std::vector<std::shared_ptr<const Memory>> split(
      std::shared_ptr<const Memory> memory,
      const std::vector<std::pair<int, int>>& parts) override {
    std::vector<std::shared_ptr<const Memory>> out;
    run([&](Model&) {
      for (const auto& [begin, count] : parts) {
        auto part = std::make_shared<Memory>();
        part->tokens.assign(memory->tokens.begin() + begin, memory->tokens.begin() + begin + count);
        std::vector<mx::array> made;
        for (auto& layer : memory->layers) {
          auto& own = part->layers.emplace_back();
          if (layer) {
            const auto cut = [&](const mx::array& x) {
              made.push_back(mx::contiguous(mx::slice(x, {0, begin, 0}, {x.shape(0), begin + count, x.shape(2)})));
              return made.back();
            };
            own.emplace(MemoryLayer{layer->keys.changed(cut), layer->values.changed(cut)});
          }
        }
        mx::eval(made);
        out.push_back(std::move(part));
      }
    });
    return out;
  }

  MemoryBytes bytes(std::shared_ptr<const Memory> memory) override {
    struct Owner {
      std::string head;
      std::vector<NamedArray> tensors;
    };
    auto owner = std::make_shared<Owner>();
    run([&](Model&) {
      std::vector<mx::array> made;
      const auto add = [&](std::string name, mx::array x) {
        made.push_back(x);
        owner->tensors.push_back({std::move(name), std::move(x)});
      };
      const auto add_rows = [&](const std::string& name, const cpu::RecallRows& rows) {
        add(name, mx::contiguous(rows.data));
        if (rows.is_coded()) {
          add(name + ".scales", mx::contiguous(*rows.scales));
          add(name + ".biases", mx::contiguous(*rows.biases));
        }
      };
      for (size_t l = 0; l < memory->layers.size(); ++l) {
        if (auto& layer = memory->layers[l]) {
          add_rows(fmt::format("keys.{}", l), layer->keys);
          add_rows(fmt::format("values.{}", l), layer->values);
        }
      }
      add("tokens", mx::array(memory->tokens.data(), {static_cast<int>(memory->tokens.size())}, mx::int32));
      mx::eval(made);
    });
    auto layout = lay_out_safetensors(owner->tensors);
    owner->head = std::move(layout.head);
    std::vector<size_t> order(owner->tensors.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return layout.offsets[a] < layout.offsets[b]; });
    MemoryBytes out{owner, {owner->head}};
    for (const size_t i : order) {
      const mx::array& x = *owner->tensors[i].array;
      out.pieces.emplace_back(reinterpret_cast<const char*>(x.data<uint8_t>()), x.nbytes());
    }
    return out;
  }

  std::shared_ptr<const Memory> open(const std::string& path) override {
    auto out = std::make_shared<Memory>();
    run([&](Model& model) {
      auto arrays = read_safetensors(path);
      const auto found = [&](const std::string& name) -> std::optional<mx::array> {
        const auto entry = arrays.find(name);
        return entry == arrays.end() ? std::nullopt : std::optional(entry->second);
      };
      auto tokens = found("tokens");
      if (!tokens || tokens->ndim() != 1 || tokens->dtype() != mx::int32) {
        fail(Kind::invalid, "[memory] {} has no tokens", path);
      }
      mx::eval(*tokens);
      const int count = tokens->shape(0);
      out->tokens.assign(tokens->data<int32_t>(), tokens->data<int32_t>() + count);
      const auto found_rows = [&](const std::string& name) -> std::optional<cpu::RecallRows> {
        auto data = found(name), scales = found(name + ".scales"), biases = found(name + ".biases");
        if (!data) {
          return std::nullopt;
        }
        const bool kind = coded_ ? scales && biases : data->dtype() == dtype_ && data->ndim() == 3;
        if (!kind) {
          fail(Kind::invalid, "[memory] {} has {} of another kind", path, name);
        }
        try {
          return coded_ ? cpu::RecallRows(*data, *scales, *biases) : cpu::RecallRows(*data);
        } catch (const std::invalid_argument& error) {
          fail(Kind::invalid, "[memory] {}: {}: {}", path, name, error.what());
        }
      };
      const auto specs = model.cache_specs();
      for (size_t l = 0; l < specs.size(); ++l) {
        auto& layer = out->layers.emplace_back();
        auto keys = found_rows(fmt::format("keys.{}", l)), values = found_rows(fmt::format("values.{}", l));
        if (keys.has_value() != values.has_value() || keys.has_value() != remembers_[l]) {
          fail(Kind::invalid, "[memory] {} is of another model: layer {}", path, l);
        }
        if (keys) {
          const int heads = specs[l].kv_heads;
          if (keys->shape(0) != heads || keys->shape(1) != count || keys->shape(2) != specs[l].head_dim ||
              values->shape(0) != heads || values->shape(1) != count) {
            fail(Kind::invalid, "[memory] {} is of another model: layer {}'s shape", path, l);
          }
          layer.emplace(MemoryLayer{*keys, *values});
        }
      }
    });
    return out;
  }

  int tokens(const Memory& memory) const override {
    return static_cast<int>(memory.tokens.size());
  }
  size_t token_bytes() const override {
    return token_bytes_;
  }

  std::vector<float> embedding(std::shared_ptr<const Memory> memory) override {
    std::vector<float> out = mean_values(*memory);
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] -= plain_[i];
    }
    return out;
  }

  std::vector<float> background(std::shared_ptr<const Memories> memories, const RecallHow& how) override {
    std::vector<std::vector<int32_t>> probes;
    for (const char* text : plain_texts) {
      probes.push_back(model_.tokenizer().encode(text, true));
    }
    return *drive<Background>(
        [&](Model& model) {
          return std::make_unique<Background>(model, dtype_, std::move(memories), how, std::move(probes));
        },
        [](const Background&) {});
  }

  std::shared_ptr<const Memories> join(std::vector<std::shared_ptr<const Memory>> parts) override {
    return std::make_shared<Memories>(std::move(parts));
  }

  Recall recall(std::shared_ptr<const Memories> memories, RecallHow how, std::string key) override {
    Recall out{nullptr, std::move(key), how.contiguous ? memories->tokens() : 0};
    out.unsure_above = std::exchange(how.unsure_above, 0.0f);
    const int extra = std::exchange(how.extra_k, 0);
    if (out.unsure_above > 0) {
      RecallHow more = how;
      more.top_k += extra;
      out.more = std::make_shared<Recalled>(memories, std::move(more));
    }
    out.memories = std::make_shared<Recalled>(std::move(memories), std::move(how));
    return out;
  }

 private:
  void run(const std::function<void(Model&)>& job) {
    model_.engine().run([&](Runner& runner) { job(dynamic_cast<ModelRunner&>(runner).model()); }).get();
  }

  /** Steps a T until one gives something, `between` being called before each. What it throws ends the work. */
  template <typename T>
  decltype(std::declval<T&>().step()) drive(
      const std::function<std::unique_ptr<T>(Model&)>& make,
      const std::function<void(const T&)>& between) {
    std::unique_ptr<T> work;
    decltype(work->step()) found{};
    const auto step = [&](const std::function<void(Model&)>& job) {
      run([&](Model& model) {
        Ending<T> ending{work};
        job(model);
        ending.failed = false;
      });
    };
    step([&](Model& model) { work = make(model); });
    try {
      while (!found) {
        between(*work);
        step([&](Model&) { found = work->step(); });
      }
      step([&](Model&) { work.reset(); });
    } catch (...) {
      // What `between` leaves behind ends on the engine's thread too, if there still is one.
      std::shared_ptr<T> left = std::move(work);
      if (left) {
        model_.engine().run([left = std::exchange(left, nullptr)](Runner&) {});
      }
      throw;
    }
    return found;
  }

  void choose_layers(const Memory& memory) {
    if (!embedded_.empty()) {
      return;
    }
    std::vector<int> with;
    for (size_t l = 0; l < memory.layers.size(); ++l) {
      remembers_.push_back(memory.layers[l].has_value());
      if (auto& layer = memory.layers[l]) {
        with.push_back(static_cast<int>(l));
        for (auto* rows : {&layer->keys, &layer->values}) {
          for (const mx::array& x : rows->arrays()) {
            token_bytes_ += x.nbytes() / memory.tokens.size();
          }
        }
      }
    }
    const auto& values = memory.layers[with[0]]->values;
    const int size = values.shape(0) * values.shape(2);
    const int count = std::clamp(most_dimensions / size, 1, std::min<int>(most_embedded_layers, with.size()));
    const int first = std::min<int>(1, with.size() - count); // the very first knows single tokens only
    embedded_.assign(with.begin() + first, with.begin() + first + count);
  }

  /** [layers * G * Dv]: a text's mean value in some layers, each of length 1. */
  std::vector<float> mean_values(const Memory& memory) {
    std::vector<float> out;
    run([&](Model&) {
      std::vector<mx::array> means;
      for (const int l : embedded_) {
        const auto values = mx::astype(memory.layers[l]->values.floats(), mx::float32);
        const auto mean = mx::flatten(mx::mean(values, 1));
        means.push_back(mx::divide(mean, mx::maximum(mx::linalg::norm(mean), mx::array(1e-20f))));
      }
      auto all = mx::concatenate(means);
      mx::eval(all);
      out.assign(all.data<float>(), all.data<float>() + all.size());
    });
    return out;
  }

  LanguageModel& model_;
  mx::Dtype dtype_; // of the cache that texts are read with, and of memories that are no codes
  bool coded_; // memories are codes of 8 bits, also beside a cache of 4: of a small model, those lose answers
  int layers_ = 0;
  std::string fingerprint_;
  size_t token_bytes_ = 0;
  std::vector<bool> remembers_; // by layer
  std::vector<int> embedded_; // the layers that documents' vectors are made of
  std::vector<float> plain_; // mean_values of plain_texts
};

} // namespace

std::unique_ptr<MemoryManager> open_memories(LanguageModel& model, MemoryOptions options) {
  if (!model.engine().options().memories) {
    fail(Kind::invalid, "[memory] the model must be loaded with extended_mind");
  }
  if (options.ram_bytes == 0) {
    options.ram_bytes = free_memory() / 8;
  }
  if (options.store.empty()) {
    options.store = default_memory_store();
  }
  auto store = open_store(options.store);
  auto encoder = std::make_unique<ModelEncoder>(model);
  return std::make_unique<MemoryManager>(
      std::move(encoder), model.tokenizer(), model.info().bos, std::move(store), std::move(options));
}

std::string default_memory_store() {
  const char* data = std::getenv("XDG_DATA_HOME");
  const char* home = std::getenv("HOME");
  const fs::path base = data && *data ? fs::path(data) : fs::path(home ? home : ".") / ".local/share";
  return "files:" + (base / "mlx_parallm" / "memories").string();
}

} // namespace parallm

#include "library/mlx_parallm.h"

#include "base/error.h"
#include "engine/drafter.h"
#include "engine/runner.h"
#include "engine/warm_up.h"
#include "kv/recall.h"
#include "library/memory.h"
#include "library/model_files.h"
#include "library/text_files.h"
#include "models/checkpoint.h"
#include "nn/device.h"

#include <boost/json.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <future>

namespace parallm {

namespace {

std::string name(mx::Dtype dtype) {
  return dtype == mx::float32 ? "float32" : dtype == mx::float16 ? "float16" : "bfloat16";
}

std::optional<mx::Dtype> wanted_dtype(const std::string& text) {
  if (text.empty()) {
    return {};
  }
  if (text == "float32") {
    return mx::float32;
  }
  if (text == "float16") {
    return mx::float16;
  }
  if (text == "bfloat16") {
    return mx::bfloat16;
  }
  fail_field("dtype", "[load] dtype must be float32, float16 or bfloat16; got {}", text);
}

/** Blocks that the KV cache gets: what was asked for, or half of the free
 * memory, less the rows' states, but no more than all rows can use. */
int capacity(const LoadOptions& load, const EngineOptions& engine, size_t block_bytes, size_t states) {
  const size_t context_blocks = (engine.max_context + engine.block_size - 1) / engine.block_size;
  const size_t most = std::min<size_t>(context_blocks * engine.max_rows, 1 << 26);
  const size_t budget = load.kv_cache_bytes > 0 ? load.kv_cache_bytes : free_memory() / 2;
  if (states + block_bytes > budget) {
    fail(
        Kind::invalid,
        "[load] the KV cache's memory must hold at least one block of {} tokens, {} bytes, and the recurrent states of "
        "max_rows {}, {} bytes; got {}",
        engine.block_size,
        block_bytes,
        engine.max_rows,
        states,
        budget);
  }
  if (block_bytes == 0) { // no layer keeps keys
    return static_cast<int>(most);
  }
  const size_t blocks = (budget - states) / block_bytes;
  return static_cast<int>(load.kv_cache_bytes > 0 ? std::min<size_t>(blocks, 1 << 26) : std::min(most, blocks));
}

/** The longest context that the model was made for. Repositories of several
 * parts have it in their text model's. */
int own_context(const Config& config, bool keeps_keys) {
  if (config.has("text_config") && !config.has("max_position_embeddings")) {
    return own_context(config.object("text_config"), keeps_keys);
  }
  // The usual name, then GPT-2's, Kimi Linear's, DBRX's and OpenELM's.
  for (auto* name :
       {"max_position_embeddings", "n_positions", "model_max_length", "max_seq_len", "max_context_length"}) {
    if (config.has(name)) {
      return config.count(name);
    }
  }
  // Without keys nothing grows with the context and no config.json bounds it.
  return keeps_keys ? 2048 : 131072;
}

/** What the engine never sees. */
struct TextParts {
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::vector<int32_t> end_ids; // by the tokenizer's own word
};

} // namespace

struct LanguageModel::Parts {
  ModelInfo info;
  TextParts text;
  std::unique_ptr<Engine> engine;
};

namespace {

TextParts read_text(const std::string& path, const LoadOptions& options) {
  TextFiles files = text_files(path);
  TextParts out;
  out.tokenizer.emplace(files.tokenizer);
  const std::string source = options.chat_template.empty()
      ? files.chat_templates["default"]
      : wanted_chat_template(options.chat_template, files.chat_templates);
  if (!source.empty()) {
    out.chat_template.emplace(source, files.special_tokens);
  } else if (files.chat_templates.size() > 1) { // "default" stands there, empty
    spdlog::warn("none of the model's chat templates is the default: --chat-template takes one by its name");
  }
  for (const std::string& token : files.end_tokens) {
    if (int32_t id = out.tokenizer->id(token); id >= 0) {
      out.end_ids.push_back(id);
    }
  }
  return out;
}

/** The checkpoint's and the tokenizer's own, as mlx-lm has them. */
std::vector<int32_t> united(std::vector<int32_t> ids, const std::vector<int32_t>& more) {
  ids.insert(ids.end(), more.begin(), more.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

/** What guesses the next tokens of `target`. */
struct Draft {
  Checkpoint checkpoint;
  std::unique_ptr<Model> model;
};

Draft open_draft(const std::string& files, const LoadOptions& options, const Tokenizer& target) {
  Draft draft{open_checkpoint(files, {.dtype = wanted_dtype(options.dtype)}), nullptr};
  draft.model = make_model(draft.checkpoint.config, draft.checkpoint.weights);
  const Tokenizer own(text_files(files).tokenizer);
  const int ids = std::min(own.size(), target.size());
  for (int32_t id = 0; id < ids; ++id) {
    if (own.bytes(id) != target.bytes(id)) {
      fail_field(
          "draft_model",
          "[load] a draft model has the model's own vocabulary; token {} is {} there and {} here",
          id,
          boost::json::serialize(boost::json::string(own.bytes(id))),
          boost::json::serialize(boost::json::string(target.bytes(id))));
    }
  }
  return draft;
}

void check_guesses(const char* field, const std::vector<CacheSpec>& specs) {
  if (state_bytes(specs) > 0) {
    fail_field(field, "[load] a recurrent layer's state can't take a wrong guess back; got a model that has some");
  }
}

/** On the engine's thread: files to a runner, and what they say to `info` and
 * `engine`. */
std::unique_ptr<Runner> load(
    const std::string& files,
    const std::string& draft_files,
    const LoadOptions& options,
    ModelInfo& info,
    EngineOptions& engine,
    TextParts& text) {
  const auto start = std::chrono::steady_clock::now();
  prepare_device();
  // A large vocabulary takes half a second, as weights may.
  auto reading = std::async(std::launch::async, [&] { return read_text(files, options); });
  Checkpoint checkpoint = open_checkpoint(files, {.dtype = wanted_dtype(options.dtype)});
  if (reading.wait_for(std::chrono::milliseconds(50)) == std::future_status::ready) {
    text = reading.get(); // what is wrong with it is said before large weights are read
  }
  auto model = make_model(checkpoint.config, checkpoint.weights);
  if (reading.valid()) {
    text = reading.get();
  }
  info.end_ids = united(checkpoint.eos_ids, text.end_ids);
  const bool cpu = mx::default_device() == mx::Device::cpu;
  if (!cpu) {
    // By default MLX keeps up to all of the GPU's memory in freed buffers.
    mx::set_cache_limit(free_memory() / 16);
  }
  info.model_type = checkpoint.config.text("model_type");
  info.device = cpu ? "cpu" : "gpu";
  info.dtype = name(checkpoint.dtype);
  info.kv_dtype = name(checkpoint.kv_dtype);
  info.vocabulary = model->vocabulary();
  info.bos = checkpoint.bos_id;
  info.temperature = checkpoint.generation.temperature;
  info.top_p = checkpoint.generation.top_p;
  info.top_k = checkpoint.generation.top_k;
  info.repetition_penalty = checkpoint.generation.repetition_penalty;

  KVOptions kv{
      .block_size = engine.block_size,
      .slots = options.max_rows,
      .dtype = checkpoint.kv_dtype,
      .bits = options.kv_bits};
  const auto specs = model->cache_specs();
  if (kv.bits != 0 && !kv_codes_fit(specs)) {
    fail_field("kv_bits", "[load] kv_bits needs heads of a multiple of 32 numbers; got a model with others");
  }
  if (kv.bits != 0) {
    info.kv_dtype = fmt::format("{}-bit", kv.bits);
    info.kv_bits = kv.bits;
  }
  size_t block_bytes = kv_block_bytes(specs, kv);
  std::optional<Draft> draft;
  KVOptions draft_kv = kv;
  engine.draft_model = !options.draft_model.empty();
  const bool asked = engine.draft_model || options.speculative == "ngram";
  if (asked) {
    check_guesses(engine.draft_model ? "draft_model" : "speculative", specs);
  }
  // On a CPU a row's numbers are the same bits beside guesses as without; a GPU's kernels may round otherwise.
  if (asked || (options.speculative == "auto" && cpu && state_bytes(specs) == 0)) {
    engine.guesses = options.draft_tokens > 0 ? options.draft_tokens : engine.draft_model ? 4 : 8;
  }
  if (engine.draft_model) {
    draft = open_draft(draft_files, options, *text.tokenizer);
    check_guesses("draft_model", draft->model->cache_specs());
    draft_kv.dtype = draft->checkpoint.kv_dtype;
    draft_kv.bits = 0; // it has few keys
    block_bytes += kv_block_bytes(draft->model->cache_specs(), draft_kv);
  }
  const int own = own_context(checkpoint.config, block_bytes > 0);
  engine.max_context = options.max_context > 0 ? options.max_context : own;
  engine.vocabulary = info.vocabulary;
  engine.end_ids = info.end_ids;
  engine.own_kv_past = model->own_kv_past();
  engine.max_rows = options.max_rows;
  // A step should be over before a reader notices: CPUs read prompts slowly.
  engine.prefill_tokens = options.prefill_tokens > 0 ? options.prefill_tokens : cpu ? 256 : 2048;
  engine.mixed_tokens = options.mixed_tokens > 0 ? options.mixed_tokens : cpu ? 128 : 512;

  const size_t states = state_bytes(specs) > 0 ? state_bytes(specs) * (engine.max_rows + 1) : 0; // and one of zeros
  engine.blocks = kv.blocks = capacity(options, engine, block_bytes, states);
  info.kv_bytes = block_bytes * engine.blocks + states;
  // A recurrent layer's state stands for all tokens before it: it has no beginning that others could share.
  engine.prefix_cache = engine.prefix_cache && state_bytes(specs) == 0;
  info.kv_tokens = engine.blocks * engine.block_size;
  if (options.max_context > info.kv_tokens) {
    fail(
        Kind::invalid,
        "[load] the KV cache must hold one whole context of {} tokens; {} bytes hold {}",
        options.max_context,
        info.kv_bytes,
        info.kv_tokens);
  }
  // What can't be held can't be asked for; the log and /v1/models show it.
  info.max_context = engine.max_context = std::min(engine.max_context, info.kv_tokens);
  auto caches = make_paged_caches(specs, kv);
  if (options.extended_mind) {
    if (const std::string why = why_no_memories(specs); !why.empty()) {
      fail(Kind::invalid, "[load] this model takes no memories: {}", why);
    }
    engine.memories = true;
    caches = make_recall_caches(std::move(caches), static_cast<int>(specs.size()));
  }
  std::unique_ptr<Drafter> drafter;
  if (draft) {
    draft_kv.blocks = kv.blocks;
    auto own = make_paged_caches(draft->model->cache_specs(), draft_kv);
    drafter = std::make_unique<Drafter>(std::move(draft->model), std::move(own));
  }
  auto runner = std::make_unique<ModelRunner>(std::move(model), std::move(caches), engine.max_rows, std::move(drafter));
  if (!cpu) {
    spdlog::info("warming up: compiling kernels, which can take minutes where MLX has not run this kind of model yet");
    warm_up(*runner, engine);
  }
  info.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return runner;
}

} // namespace

LanguageModel::LanguageModel(const std::string& path, const LoadOptions& options) : parts_(std::make_unique<Parts>()) {
  parts_->info.path = path;
  if (options.kv_bits != 0 && options.kv_bits != 4 && options.kv_bits != 8) {
    fail_field("kv_bits", "[load] kv_bits must be 4 or 8; got {}", options.kv_bits);
  }
  if (options.speculative != "auto" && options.speculative != "ngram" && options.speculative != "none") {
    fail_field("speculative", "[load] speculative must be auto, ngram or none; got {}", options.speculative);
  }
  if (options.draft_tokens != 0 && options.speculative == "none" && options.draft_model.empty()) {
    fail_field("draft_tokens", "[load] guesses need speculative auto or ngram, or a draft model; got neither");
  }
  if (options.speculative == "ngram" && !options.draft_model.empty()) {
    fail_field("speculative", "[load] either a draft model guesses or the text itself; got both");
  }
  const std::string files = parts_->info.files = model_files(path, options.on_fetch);
  const std::string draft_files = options.draft_model.empty() ? "" : model_files(options.draft_model, options.on_fetch);
  EngineOptions engine;
  engine.max_waiting = options.max_waiting;
  engine.prefix_cache = options.prefix_cache;
  parts_->engine = std::make_unique<Engine>(engine, [&](EngineOptions& completed) {
    return load(files, draft_files, options, parts_->info, completed, parts_->text);
  });

  const int ids = parts_->text.tokenizer->size();
  if (ids > parts_->info.vocabulary) {
    spdlog::warn(
        "the tokenizer has {} ids, the model's logits are {} wide: prompts "
        "with ids beyond are refused",
        ids,
        parts_->info.vocabulary);
  }
}

LanguageModel::~LanguageModel() = default;
LanguageModel::LanguageModel(LanguageModel&&) noexcept = default;

const ModelInfo& LanguageModel::info() const {
  return parts_->info;
}

const Tokenizer& LanguageModel::tokenizer() const {
  return *parts_->text.tokenizer;
}

const ChatTemplate* LanguageModel::chat_template() const {
  return parts_->text.chat_template ? &*parts_->text.chat_template : nullptr;
}

Engine& LanguageModel::engine() {
  return *parts_->engine;
}

std::vector<int32_t> LanguageModel::chat_prompt(const std::string& message) const {
  if (!parts_->text.chat_template) {
    fail(Kind::invalid, "[chat] the model {} has no chat template; --chat-template gives one", parts_->info.path);
  }
  boost::json::object variables{
      {"messages", boost::json::array{{{"role", "user"}, {"content", message}}}}, {"add_generation_prompt", true}};
  // The template writes BOS and its like itself.
  return parts_->text.tokenizer->encode(parts_->text.chat_template->render(boost::json::serialize(variables)), false);
}

} // namespace parallm

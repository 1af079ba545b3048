// mlx_parallm as a C++ library: load a model, generate from many prompts at
// once. This one header is all a program needs; examples/ has a program for
// each verb. No tensor type is in it.
//
// A LanguageModel owns the engine's thread. It may be used from several threads
// at once; everything that is generated at the same time, by whichever calls,
// shares the engine's batch. The streams below belong to one thread each, and
// must end before their model does.
//
// Errors are thrown: parallm::Error (base/error.h).
#pragma once

#include "engine/engine.h"
#include "hub/hub.h"
#include "text/chat_template.h"
#include "text/text_stream.h"
#include "text/tokenizer.h"

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace parallm {

struct LoadOptions {
  std::string dtype; // "float32", "float16", "bfloat16"; empty: what suits
                     // checkpoint and device
  size_t kv_cache_bytes = 0; // 0: half of the free memory, and no more than max_rows contexts take
  int kv_bits = 0; // 8 or 4: keys and values in codes of so many, memories in 8; 0: in 16 or 32 bits
  int max_rows = 32; // sequences in one step
  int max_waiting = 256; // more requests than these are refused
  int max_context = 0; // 0: the model's own
  int prefill_tokens = 0; // a step's prompt tokens while nothing decodes; 0:
                          // what suits the device
  int mixed_tokens = 0; // and while something does; 0: likewise
  bool prefix_cache = true;
  // Speculative decoding: guesses that the model checks, some in one step. It
  // changes no text, and is off by itself where a full batch leaves no time.
  std::string speculative = "auto"; // "ngram": a row's own earlier tokens say what may follow; "none"; "auto": ngram on
                                    // a CPU, unless there is a draft model or the model is recurrent
  std::string draft_model; // a small model with the same vocabulary, which guesses instead
  int draft_tokens = 0; // most guesses of a row in a step; 0: 8, of a draft model 4
  bool extended_mind = false; // rows may have memories: library/memories.h
  OnFetch on_fetch; // where files come from the hub; without it its warnings go to the log
  std::string chat_template; // a file, a Jinja source, or the name of one of the model's; empty: its default
};

/** What a loaded model is. */
struct ModelInfo {
  std::string path; // as given
  std::string files; // where they are: a folder, or a .gguf file
  std::string model_type;
  std::string device; // "cpu" or "gpu"
  std::string dtype; // of the activations
  std::string kv_dtype; // or "8-bit", "4-bit"
  int kv_bits = 0; // LoadOptions::kv_bits
  int vocabulary = 0; // the logits' width
  int max_context = 0;
  size_t kv_bytes = 0; // the KV cache's capacity
  int kv_tokens = 0; // the same in tokens
  double load_seconds = 0;
  std::vector<int32_t> end_ids;
  int32_t bos = -1; // -1: none
  // What the model's authors recommend (generation_config.json).
  std::optional<float> temperature, top_p, repetition_penalty;
  std::optional<int> top_k;
};

class LanguageModel {
 public:
  /** Loads `path` (a folder in MLX's or Hugging Face's layout, a .gguf file, or a model's name on the hub, which is
   * fetched first: library/model_files.h) and returns when it is ready. */
  explicit LanguageModel(const std::string& path, const LoadOptions& options = {});
  ~LanguageModel();
  LanguageModel(LanguageModel&&) noexcept;

  const ModelInfo& info() const;
  const Tokenizer& tokenizer() const;
  /** Null where the model has none. */
  const ChatTemplate* chat_template() const;
  Engine& engine();

  /** One user message in the model's chat template, as ids. Errors: invalid,
   * where it has no template. */
  std::vector<int32_t> chat_prompt(const std::string& message) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

struct GenerateOptions {
  int max_tokens = 100;
  Sampling sampling = {.temperature = 0};
  std::vector<std::string> stop; // strings that end the text; not part of it
  bool chat = false; // prompts are user messages, put into the chat template
};

struct Generation {
  std::string text;
  std::vector<int32_t> ids;
  Finish finish = Finish::none;
  std::optional<Error> error; // where finish is `error`: of this prompt alone
  int prompt_tokens = 0;
  int cached_tokens = 0; // of the prompt, whose KV was there already
};

/** What came of one prompt of several. */
struct TextPiece {
  size_t prompt; // its index
  std::string text;
  int tokens = 0; // that came with it
  std::optional<Generation> done; // with the prompt's last piece: all of it
};

/** Pieces of many prompts' texts as they come, in the order they come. */
class TextPieces {
 public:
  struct State;
  explicit TextPieces(std::unique_ptr<State> state);
  TextPieces(TextPieces&&) noexcept;
  ~TextPieces(); // cancels what still runs

  /** Blocks; nothing more when every prompt is done. A piece may be empty where
   * only ids came. */
  std::optional<TextPiece> next();

 private:
  std::unique_ptr<State> state_;
};

/** Token by token, for one sequence of ids. */
class Steps {
 public:
  explicit Steps(Stream stream);
  /** Blocks; nothing more after an end token or max_tokens. */
  std::optional<Scored> next();

 private:
  Stream stream_;
  bool ended_ = false;
};

/** All prompts at once; the result has one entry for each, in order. */
std::vector<Generation>
batch_generate(LanguageModel& model, std::span<const std::string> prompts, const GenerateOptions& options = {});

/** All prompts at once, as a stream of pieces. However many there are, the
 * engine's queue is never overfull. */
TextPieces batch_stream_generate_text(
    LanguageModel& model,
    std::span<const std::string> prompts,
    const GenerateOptions& options = {});

/** One prompt, as a stream of pieces. */
TextPieces stream_generate(LanguageModel& model, const std::string& prompt, const GenerateOptions& options = {});

/** One prompt of ids, as a stream of ids with, where asked for, log
 * probabilities. */
Steps generate_step(
    LanguageModel& model,
    std::vector<int32_t> prompt,
    int max_tokens,
    const Sampling& sampling = {.temperature = 0});

} // namespace parallm

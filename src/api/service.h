// What the routes serve: the model that was loaded, the limits, the state of
// the process. The port opens before the model is there; the loading thread
// calls ready() or failed() once. Thread-safe.
#pragma once

#include "api/metrics.h"
#include "engine/engine.h"
#include "mind/manager.h"
#include "text/chat_template.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

#include <atomic>
#include <ctime>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace parallm {

/** What loading gives. The order is the order of construction: the engine goes
 * first at the end. */
struct ServedModel {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat_template; // null: the model has none
  std::shared_future<std::shared_ptr<const Grammars>> grammars; // not valid: no constrained output
  std::shared_ptr<Engine> engine;
  int32_t bos = -1; // what stands for an empty prompt; -1: none
  Sampling sampling_defaults; // from generation_config.json; else OpenAI's
  std::shared_ptr<MemoryManager> memories; // null: the server was started without
};

struct ServiceOptions {
  std::vector<std::string> ids; // the --model-path string, then the served
                                // names; the first is the one shown
  std::string path; // where the model comes from, for /v1/models
  int default_max_tokens = 100; // of /v1/completions
  int max_choices = 128; // n * prompts of one request
  bool strict = false; // an unknown field is an error
};

enum class State { loading, ready, draining, failed };

class Service {
 public:
  explicit Service(ServiceOptions options);

  void ready(ServedModel model);
  void failed(std::string why);
  void draining();
  /** What has not ended is given up: no document is read on. */
  void cut_off();

  State state() const;
  /** Errors: unavailable, while there is none. */
  const ServedModel& model() const;
  /** The model's engine, also while draining; null before loading ended. */
  Engine* engine() const;
  /** Its memories, likewise; null also where the server was started without. */
  MemoryManager* memories() const;
  const std::string& failure() const; // where state is failed

  bool serves(std::string_view id) const;
  const ServiceOptions& options() const;
  std::time_t created() const;
  Metrics& metrics();

 private:
  ServiceOptions options_;
  std::time_t created_;
  Metrics metrics_;
  ServedModel model_; // written before loaded_ is set, never after
  std::string failure_;
  std::atomic<bool> loaded_ = false;
  std::atomic<State> state_ = State::loading;
};

} // namespace parallm

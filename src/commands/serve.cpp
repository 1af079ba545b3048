#include "api/server.h"
#include "api/service.h"
#include "base/log.h"
#include "commands/commands.h"
#include "commands/flags.h"
#include "commands/progress.h"
#include "library/memories.h"

#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdlib>
#include <future>
#include <thread>

namespace parallm {

namespace {

struct ServeFlags {
  std::string model_path;
  LoadOptions load;
  ServerOptions server;
  ServiceOptions service;
  MemoryOptions memory;
  std::string log_level = "info";
};

/** Flags of the Python mlx_parallm that its design needed and this one doesn't. */
struct OldFlags {
  std::optional<double> batch_timeout;
  std::optional<int> max_concurrent_streams;
  std::optional<std::string> scheduler;
  std::optional<bool> diverse_mode;

  void add(CLI::App& app) {
    const char* group = "Flags of the Python server, accepted without effect";
    app.add_option("--batch-timeout", batch_timeout, "requests join the batch at the next step")->group(group);
    app.add_option("--max-concurrent-streams", max_concurrent_streams, "every stream is delivered as it is made")
        ->group(group);
    app.add_option("--scheduler", scheduler, "there is one scheduler: continuous")
        ->check(CLI::IsMember({"default", "continuous"}))
        ->group(group);
    app.add_option("--diverse-mode", diverse_mode, "choices are always independent samples")->group(group);
  }

  void say() const {
    const auto say_one = [](const char* flag, const char* why) {
      spdlog::warn("{} no longer changes anything: {}", flag, why);
    };
    if (batch_timeout) {
      say_one("--batch-timeout", "requests join the batch at the next step");
    }
    if (max_concurrent_streams) {
      say_one("--max-concurrent-streams", "every stream is delivered as it is made");
    }
    if (scheduler) {
      say_one("--scheduler", "there is one scheduler, and it is continuous");
    }
    if (diverse_mode) {
      say_one("--diverse-mode", "choices are always independent samples");
    }
  }
};

void add_seconds(CLI::App& app, const char* flag, std::chrono::milliseconds& value, const char* help) {
  app.add_option_function<double>(
         flag,
         [&value](const double& seconds) { value = std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)); },
         help)
      ->check(CLI::Range(0.001, 1e9))
      ->default_str(fmt::format("{}", value.count() / 1000));
}

void add_http_flags(CLI::App& app, ServeFlags& flags) {
  app.add_option("--host", flags.server.host, "address to listen on")->capture_default_str();
  app.add_option("--port", flags.server.port, "port to listen on; 0 takes a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--served-model-name", flags.service.ids, "more names under which the API knows the model");
  add_seconds(
      app, "--request-timeout-seconds", flags.server.request_timeout, "a request that takes longer is answered 504");
  app.add_option("--max-queue", flags.load.max_waiting, "requests that may wait; more are answered 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-choices", flags.service.max_choices, "n times prompts of one request")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option(
         "--default-max-tokens", flags.service.default_max_tokens, "of /v1/completions, where a request names none")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  app.add_option_function<std::string>(
      "--max-body",
      [&](const std::string& text) { flags.server.body_limit = parse_size("--max-body", text); },
      "greatest request body, such as 16MB; a greater one is answered 413; default: 32MB");
  app.add_option("--api-key", flags.server.api_key, "clients must send it as a Bearer token")
      ->envname("MLX_PARALLM_API_KEY");
  app.add_option("--allowed-origins", flags.server.allowed_origins, "origins that browsers may call from; * is any");
  app.add_option("--http-threads", flags.server.io_threads, "threads that serve connections")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  add_seconds(app, "--drain-seconds", flags.server.drain_limit, "how long running requests may take after SIGTERM");
  app.add_option("--strict", flags.service.strict, "true|false: a field that the API doesn't know is an error")
      ->capture_default_str();
  app.add_option("--log-level", flags.log_level, "of what is printed")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
}

void add_memory_flags(CLI::App& app, ServeFlags& flags) {
  app.add_flag(
      "--use-extended-mind",
      flags.load.extended_mind,
      "requests may attend to memories: documents given to /v1/memories, which the model reads once");
  app.add_option("--memory-store", flags.memory.store, "where they are kept: docs/memory.md has the addresses")
      ->default_str(default_memory_store());
  app.add_option_function<std::string>(
      "--memory-ram",
      [&](const std::string& text) { flags.memory.ram_bytes = parse_size("--memory-ram", text); },
      "keys and values of memories that are held in RAM, such as 2GB, which is also the most that one request may have; "
      "default: an eighth of the free memory");
  app.add_option("--memory-document-tokens", flags.memory.document_tokens, "most tokens of one document")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
}

void say_loaded(const ModelInfo& info) {
  spdlog::info(
      "{} ({}) loaded in {:.1f} s on {}: activations {}, KV cache {} for {} "
      "tokens ({:.2f} GiB), context {}",
      info.path,
      info.model_type,
      info.load_seconds,
      info.device,
      info.dtype,
      info.kv_dtype,
      info.kv_tokens,
      info.kv_bytes / 0x1p30,
      info.max_context);
}

ServedModel served(std::shared_ptr<LanguageModel> model, const MemoryOptions& memory) {
  const ModelInfo& info = model->info();
  Sampling sampling;
  sampling.temperature = info.temperature.value_or(1.0f);
  sampling.top_p = info.top_p.value_or(1.0f);
  sampling.top_k = info.top_k.value_or(0);
  sampling.repetition_penalty = info.repetition_penalty.value_or(1.0f);
  // Only requests that constrain their output wait for it: half a second for a large vocabulary.
  auto grammars = std::async(std::launch::async, [model]() -> std::shared_ptr<const Grammars> {
    try {
      return std::make_shared<Grammars>(model->tokenizer(), model->info().vocabulary, model->info().end_ids);
    } catch (const std::exception& error) {
      spdlog::warn("requests that constrain their output will be refused: {}", error.what());
      throw;
    }
  });
  std::shared_ptr<MemoryManager> memories;
  if (model->engine().options().memories) {
    // It ends before its model does.
    memories = {open_memories(*model, memory).release(), [model](MemoryManager* manager) { delete manager; }};
  }
  // Parts of the model that keep all of it alive.
  return {
      .tokenizer = {model, &model->tokenizer()},
      .chat_template = {model, model->chat_template()},
      .grammars = grammars.share(),
      .engine = {model, &model->engine()},
      .bos = info.bos,
      .sampling_defaults = sampling,
      .memories = memories};
}

} // namespace

int serve(std::vector<std::string> arguments) {
  ServeFlags flags;
  OldFlags old;
  CLI::App app("OpenAI-compatible HTTP server for one model", "mlx_parallm_serve");
  app.set_version_flag("--version", PARALLM_VERSION);
  app.add_option("--model-path", flags.model_path, std::string(model_path_help) + "; this string is the model's id")
      ->envname("MLX_PARALLM_MODEL")
      ->required();
  add_http_flags(app, flags);
  add_load_flags(app, flags.load);
  add_memory_flags(app, flags);
  old.add(app);
  try {
    parse(app, std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  set_log(flags.log_level);
  old.say();
  flags.service.ids.insert(flags.service.ids.begin(), flags.model_path);
  flags.service.path = flags.model_path;
  flags.load.on_fetch = FetchBar(flags.model_path, stderr, true);

  Service service(flags.service);
  Server server(flags.server, service);
  std::atomic<int> code = 0;
  std::atomic<bool> loaded = false;
  std::thread loading([&] {
    try {
      auto model = std::make_shared<LanguageModel>(flags.model_path, flags.load);
      say_loaded(model->info());
      service.ready(served(std::move(model), flags.memory));
      spdlog::info("ready at http://{}:{}", flags.server.host, server.port());
    } catch (const std::exception& error) {
      spdlog::error("{}", error.what());
      service.failed(error.what());
      code = 1;
      server.stop();
    }
    loaded = true;
  });
  server.run();
  if (!loaded && code == 0) {
    // A signal: nobody waits for what loads, which may take minutes and can't be stopped in the middle.
    spdlog::info("stopped while loading");
    spdlog::shutdown();
    std::_Exit(0);
  }
  loading.join();
  return code;
}

} // namespace parallm

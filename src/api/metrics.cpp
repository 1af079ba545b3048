#include "api/metrics.h"

#include "base/json.h"

#include <prometheus/collectable.h>
#include <prometheus/text_serializer.h>

#include <array>

namespace parallm {

namespace {

using prometheus::MetricType;

// The range of vLLM's dashboards: a millisecond to the better part of an hour.
const prometheus::Histogram::BucketBoundaries seconds_buckets = {0.001, 0.005, 0.01, 0.02,  0.04,  0.06,  0.08, 0.1,
                                                                 0.25,  0.5,   0.75, 1.0,   2.5,   5.0,   7.5,  10.0,
                                                                 20.0,  40.0,  80.0, 160.0, 640.0, 2560.0};

template <typename Stats>
struct Figure {
  const char* name;
  const char* vllm; // vLLM's name of the same thing; null: it has none
  MetricType type;
  const char* help;
  double (*value)(const Stats&);
  const char* label = nullptr; // value of the label "finished_reason"
};

double share(double part, double whole) {
  return whole > 0 ? part / whole : 0;
}

constexpr auto gauge = MetricType::Gauge;
constexpr auto counter = MetricType::Counter;
using S = const EngineStats&;

// Rows of one name stand together: the text format wants a family in one piece.
const Figure<EngineStats> figures[] = {
    {"requests_running", "num_requests_running", gauge, "Rows in the batch", [](S s) -> double { return s.running; }},
    {"requests_waiting",
     "num_requests_waiting",
     gauge,
     "Rows waiting for a place",
     [](S s) -> double { return s.waiting; }},
    {"kv_cache_usage",
     "kv_cache_usage_perc",
     gauge,
     "Share of KV blocks that rows hold; 1 is full",
     [](S s) { return share(s.blocks_used, s.blocks_total); }},
    {"kv_blocks_total", nullptr, gauge, "KV blocks there are", [](S s) -> double { return s.blocks_total; }},
    {"kv_blocks_cached",
     nullptr,
     gauge,
     "KV blocks kept for reuse alone",
     [](S s) -> double { return s.blocks_cached; }},
    {"prefix_cache_queries_total",
     "prefix_cache_queries_total",
     counter,
     "Prompt tokens looked up in the prefix cache",
     [](S s) -> double { return s.prefix_queries; }},
    {"prefix_cache_hits_total",
     "prefix_cache_hits_total",
     counter,
     "Prompt tokens found in the prefix cache",
     [](S s) -> double { return s.prefix_hits; }},
    {"prompt_tokens_total",
     "prompt_tokens_total",
     counter,
     "Prompt tokens",
     [](S s) -> double { return s.prompt_tokens; }},
    {"generation_tokens_total",
     "generation_tokens_total",
     counter,
     "Generated tokens",
     [](S s) -> double { return s.generated_tokens; }},
    {"request_success_total",
     "request_success_total",
     counter,
     "Rows that ended well",
     [](S s) -> double { return s.finished_stop; },
     "stop"},
    {"request_success_total",
     "request_success_total",
     counter,
     "Rows that ended well",
     [](S s) -> double { return s.finished_length; },
     "length"},
    {"requests_cancelled_total", nullptr, counter, "Rows whose client left", [](S s) -> double { return s.cancelled; }},
    {"requests_failed_total",
     nullptr,
     counter,
     "Rows that ended with an error",
     [](S s) -> double { return s.failed; }},
    {"preemptions_total",
     "num_preemptions_total",
     counter,
     "Rows set back because KV ran out",
     [](S s) -> double { return s.preemptions; }},
    {"spec_decode_num_drafts_total",
     "spec_decode_num_drafts_total",
     counter,
     "Rows' steps with guesses (speculative decoding)",
     [](S s) -> double { return s.guess_steps; }},
    {"spec_decode_num_draft_tokens_total",
     "spec_decode_num_draft_tokens_total",
     counter,
     "Guessed tokens",
     [](S s) -> double { return s.guessed_tokens; }},
    {"spec_decode_num_accepted_tokens_total",
     "spec_decode_num_accepted_tokens_total",
     counter,
     "Guesses that were right",
     [](S s) -> double { return s.right_guesses; }},
    {"uncertain_steps_total",
     nullptr,
     counter,
     "Positions computed again with more memories (on_uncertainty)",
     [](S s) -> double { return s.unsure_steps; }},
    {"steps_total", nullptr, counter, "Forward passes", [](S s) -> double { return s.steps; }},
    {"decode_steps_total",
     nullptr,
     counter,
     "Forward passes with decoding rows",
     [](S s) -> double { return s.decode_steps; }},
    {"decode_rows_total",
     nullptr,
     counter,
     "Decoding rows, summed over forward passes",
     [](S s) -> double { return s.decode_rows; }},
    {"prefill_steps_total",
     nullptr,
     counter,
     "Forward passes with prompt tokens",
     [](S s) -> double { return s.prefill_steps; }},
    {"prefill_seconds_total",
     nullptr,
     counter,
     "Time in forward passes with prompt tokens",
     [](S s) { return s.prefill_seconds; }},
    {"decode_seconds_total",
     nullptr,
     counter,
     "Time in forward passes with decoding rows alone",
     [](S s) { return s.decode_seconds; }},
};

using M = const MemoryStats&;

const Figure<MemoryStats> memory_figures[] = {
    {"memory_ram_bytes",
     nullptr,
     gauge,
     "Keys and values of documents that are held in RAM",
     [](M m) -> double { return m.ram_bytes; }},
    {"memory_ram_limit_bytes", nullptr, gauge, "--memory-ram", [](M m) -> double { return m.ram_limit; }},
    {"memory_ram_documents", nullptr, gauge, "Documents held in RAM", [](M m) -> double { return m.ram_documents; }},
    {"memory_joined_bytes",
     nullptr,
     gauge,
     "Keys and values of documents joined for requests",
     [](M m) -> double { return m.joined_bytes; }},
    {"memory_jobs", nullptr, gauge, "Jobs that read documents or wait to", [](M m) -> double { return m.jobs; }},
    {"memory_documents_read_total",
     nullptr,
     counter,
     "Documents that the model read",
     [](M m) -> double { return m.reads; }},
    {"memory_tokens_read_total", nullptr, counter, "Their memories", [](M m) -> double { return m.read_tokens; }},
    {"memory_documents_loaded_total",
     nullptr,
     counter,
     "Documents whose keys and values came from the disk",
     [](M m) -> double { return m.loads; }},
    {"memory_requests_total", nullptr, counter, "Requests with memories", [](M m) -> double { return m.views; }},
    {"memory_requests_tokens_total",
     nullptr,
     counter,
     "Memories that requests had, summed",
     [](M m) -> double { return m.view_tokens; }},
};

template <typename Stats>
void add(
    std::vector<prometheus::MetricFamily>& families,
    const std::string& name,
    const Figure<Stats>& figure,
    const Stats& stats,
    const std::string& model) {
  if (families.empty() || families.back().name != name) {
    families.push_back({name, figure.help, figure.type, {}});
  }
  prometheus::ClientMetric metric;
  metric.label.push_back({"model_name", model});
  if (figure.label) {
    metric.label.push_back({"finished_reason", figure.label});
  }
  (figure.type == gauge ? metric.gauge.value : metric.counter.value) = figure.value(stats);
  families.back().metric.push_back(std::move(metric));
}

std::vector<prometheus::MetricFamily> engine_families(const EngineStats& stats, const std::string& model) {
  std::vector<prometheus::MetricFamily> families;
  for (const auto& figure : figures) {
    add(families, std::string("mlx_parallm_") + figure.name, figure, stats, model);
  }
  for (const auto& figure : figures) {
    if (figure.vllm) {
      add(families, std::string("vllm:") + figure.vllm, figure, stats, model);
    }
  }
  return families;
}

std::vector<prometheus::MetricFamily> memory_families(const MemoryStats& stats, const std::string& model) {
  std::vector<prometheus::MetricFamily> families;
  for (const auto& figure : memory_figures) {
    add(families, std::string("mlx_parallm_") + figure.name, figure, stats, model);
  }
  return families;
}

} // namespace

Metrics::Latency Metrics::latency(const std::string& name, const std::string& help) {
  auto histogram = [&](const std::string& prefix) {
    return &prometheus::BuildHistogram().Name(prefix + name).Help(help).Register(registry_).Add({}, seconds_buckets);
  };
  return {histogram("mlx_parallm_"), histogram("vllm:")};
}

Metrics::Metrics()
    : first_token_(latency("time_to_first_token_seconds", "From the request's arrival to its first token")),
      between_tokens_(latency("inter_token_latency_seconds", "Between a row's tokens")),
      request_(latency("e2e_request_latency_seconds", "From the request's arrival to its last token")),
      streamed_(prometheus::BuildCounter()
                    .Name("mlx_parallm_streams_total")
                    .Help("Requests answered as a stream")
                    .Register(registry_)
                    .Add({})),
      http_(prometheus::BuildCounter()
                .Name("mlx_parallm_http_requests_total")
                .Help("HTTP requests by route and status")
                .Register(registry_)) {}

void Metrics::first_token(double seconds) {
  first_token_.observe(seconds);
}

void Metrics::between_tokens(double seconds) {
  between_tokens_.observe(seconds);
}

void Metrics::request_done(double seconds) {
  request_.observe(seconds);
}

void Metrics::streamed() {
  streamed_.Increment();
}

void Metrics::http(const std::string& path, int status) {
  http_.Add({{"path", path}, {"status", std::to_string(status)}}).Increment();
}

std::string Metrics::prometheus(const Engine* engine, const MemoryManager* memories, const std::string& model) {
  auto families = registry_.Collect();
  if (memories) {
    auto more = memory_families(memories->stats(), model);
    families.insert(families.begin(), more.begin(), more.end());
  }
  if (engine) {
    auto more = engine_families(engine->stats(), model);
    families.insert(families.begin(), more.begin(), more.end());
  }
  return prometheus::TextSerializer().Serialize(families);
}

std::string Metrics::debug(const Engine* engine, const MemoryManager* memories) {
  EngineStats now = engine ? engine->stats() : EngineStats{};
  EngineStats last;
  {
    std::lock_guard lock(debug_mutex_);
    last = std::exchange(last_, now);
  }
  double rows = engine ? engine->options().max_rows : 0;
  double prompt_seconds = now.prefill_seconds;
  double decode_seconds = now.decode_seconds;
  json::object out;
  out["batches_processed"] = now.steps;
  out["avg_batch_fill_pct"] = 100 * share(now.decode_rows, now.decode_steps * rows);
  out["batch_fill_hist"] = json::array(now.batch_fill.begin(), now.batch_fill.end());
  out["queue_depth_last"] = now.waiting;
  out["stream_batches_processed"] = static_cast<uint64_t>(streamed_.Value()); // streams share every batch
  out["prompt_tps_avg"] = share(now.prompt_tokens - now.cached_tokens, prompt_seconds);
  out["prompt_tps_last"] = share(
      (now.prompt_tokens - now.cached_tokens) - (last.prompt_tokens - last.cached_tokens),
      prompt_seconds - last.prefill_seconds);
  // Rows that decode beside a prompt's chunk count their tokens too, so the
  // time is all of it.
  out["decode_tps_avg"] = share(now.generated_tokens, prompt_seconds + decode_seconds);
  out["decode_tps_last"] = share(
      now.generated_tokens - last.generated_tokens,
      (prompt_seconds + decode_seconds) - (last.prefill_seconds + last.decode_seconds));
  out["prompt_tokens_total"] = now.prompt_tokens;
  out["decode_tokens_total"] = now.generated_tokens;
  if (memories) {
    const MemoryStats stats = memories->stats();
    json::object memory;
    for (const auto& figure : memory_figures) {
      memory[figure.name] = static_cast<uint64_t>(figure.value(stats));
    }
    out["memory"] = std::move(memory);
  }
  return json_text(out);
}

} // namespace parallm

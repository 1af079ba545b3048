// The figures of /metrics and /debug/metrics: the engine's counters read at the
// moment of asking, and what only the HTTP side knows (latencies as clients see
// them, requests by route and status). Thread-safe.
#pragma once

#include "engine/engine.h"
#include "mind/manager.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <mutex>
#include <string>

namespace parallm {

class Metrics {
 public:
  Metrics();

  void first_token(double seconds); // from the request's arrival
  void between_tokens(double seconds);
  void request_done(double seconds);
  void streamed();
  void http(const std::string& path, int status);

  /** Prometheus' text format 0.0.4. `engine` null: no model yet; `memories` null: the server has none. */
  std::string prometheus(const Engine* engine, const MemoryManager* memories, const std::string& model);
  /** The old server's JSON. "last" rates are over the time since the call
   * before. */
  std::string debug(const Engine* engine, const MemoryManager* memories);

 private:
  prometheus::Registry registry_;
  // Each latency has two names: vLLM's, for the dashboards that exist, and
  // ours.
  struct Latency {
    prometheus::Histogram* ours;
    prometheus::Histogram* vllm;
    void observe(double seconds) {
      ours->Observe(seconds);
      vllm->Observe(seconds);
    }
  };
  Latency latency(const std::string& name, const std::string& help);

  Latency first_token_;
  Latency between_tokens_;
  Latency request_;
  prometheus::Counter& streamed_;
  prometheus::Family<prometheus::Counter>& http_;

  std::mutex debug_mutex_; // guards last_
  EngineStats last_;
};

} // namespace parallm

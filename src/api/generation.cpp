// The frame of both generating routes' answers.
#include "api/choices.h"
#include "api/sse.h"

namespace parallm {

LiveGeneration::LiveGeneration(Service& service, Ask ask)
    : choices_(service, std::move(ask)), created_(std::time(nullptr)) {
  streaming = choices_.ask().stream;
  if (!streaming) {
    whole_.resize(choices_.ask().prompts.size() * choices_.ask().n);
    for (size_t i = 0; i < whole_.size(); ++i) {
      whole_[i].index = static_cast<int>(i);
    }
  }
}

void LiveGeneration::on_ready(std::function<void()> wake) {
  choices_.on_ready(wake);
}

Live::Progress LiveGeneration::advance() {
  Progress out;
  for (Part& part : choices_.take()) {
    if (streaming) {
      out.bytes += chunks(part);
    } else {
      whole_[part.index].append(std::move(part));
    }
  }
  out.done = choices_.done();
  if (!out.done) {
    return out;
  }
  if (streaming) {
    if (ask().include_usage) {
      json::object last = envelope(chunk_object(), {});
      last["usage"] = choices_.usage();
      out.bytes += sse(last);
    }
    out.bytes += sse_done;
  } else {
    json::array choices;
    for (Part& part : whole_) {
      choices.push_back(choice(part));
    }
    json::object whole = envelope(object(), std::move(choices));
    whole["usage"] = choices_.usage();
    out.bytes = json_text(whole);
  }
  return out;
}

void LiveGeneration::add_memory(json::object& choice, const Part& part) const {
  if (ask().memories && part.finish != Finish::none) {
    choice["memory"] = memory_json(*ask().memories, *ask().memory, part.use.value_or(AnswerUse{}), part.unsure);
  }
}

std::string LiveGeneration::chunk(json::object choice) const {
  json::array choices;
  choices.push_back(std::move(choice));
  return sse(envelope(chunk_object(), std::move(choices)));
}

json::object LiveGeneration::envelope(const char* object, json::array choices) const {
  json::object out{
      {"id", ask().id},
      {"object", object},
      {"created", created_},
      {"model", ask().model},
      {"system_fingerprint", "fp_mlx_parallm"}};
  out["choices"] = std::move(choices);
  if (streaming && ask().include_usage) {
    out["usage"] = nullptr;
  }
  return out;
}

const Ask& LiveGeneration::ask() const {
  return choices_.ask();
}

const Tokenizer& LiveGeneration::tokenizer() const {
  return choices_.tokenizer();
}

json::value finish_reason(Finish finish) {
  switch (finish) {
    case Finish::none:
      return nullptr;
    case Finish::length:
      return "length";
    default:
      return "stop";
  }
}

} // namespace parallm

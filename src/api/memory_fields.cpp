#include "api/memory_fields.h"

#include "api/schema.h"
#include "api/service.h"

#include <algorithm>
#include <limits>

namespace parallm {

namespace {

constexpr double most_entropy = 1000; // nats; no vocabulary has so much
constexpr int most_documents = 1 << 20;

json::value name_or_null(const std::string& space) {
  return space.empty() ? json::value() : json::value(space);
}

std::vector<std::string> read_names(const json::array& array, const std::string& field) {
  std::vector<std::string> out;
  for (size_t i = 0; i < array.size(); ++i) {
    if (!array[i].is_string()) {
      fail_field(fmt::format("{}[{}]", field, i), "[{}] must hold strings; got {}", field, json_kind(array[i]));
    }
    out.emplace_back(array[i].get_string());
  }
  return out;
}

/** "all", {"from": 4}, {"from": 4, "to": 20}, or a list of layers. */
std::vector<bool> read_layers(Fields& fields, int layers) {
  const json::value* value = fields.any("layers");
  if (!value || *value == "all") {
    return {};
  }
  const std::string field = fields.name("layers");
  std::vector<bool> out(layers, false);
  if (value->is_array()) {
    for (const json::value& one : value->get_array()) {
      out[read_integer(one, field, 0, layers - 1)] = true;
    }
  } else if (value->is_object()) {
    Fields inner(value->get_object(), field + ".");
    const auto from = inner.integer("from", 0, layers - 1).value_or(0);
    const auto to = inner.integer("to", from, layers - 1).value_or(layers - 1);
    inner.refuse_unknown();
    std::fill(out.begin() + from, out.begin() + to + 1, true);
  } else {
    fail_field(
        field,
        "[{}] must be \"all\", a list of layers from 0 to {}, or {{\"from\": n, \"to\": n}}; got {}",
        field,
        layers - 1,
        json_excerpt(*value));
  }
  return out;
}

bool read_choice(Fields& fields, std::string_view name, std::string_view no, std::string_view yes) {
  const auto value = fields.string(name);
  if (value && *value != no && *value != yes) {
    fail_field(fields.name(name), "[{}] must be {} or {}; got {}", fields.name(name), no, yes, *value);
  }
  return value == yes;
}

/** {"entropy": 1.0, "extra_k": 8}, both needed. */
void read_uncertainty(Fields& fields, RecallHow& how) {
  const json::object* object = fields.object("on_uncertainty");
  if (!object) {
    return;
  }
  Fields inner(*object, fields.name("on_uncertainty") + ".");
  const auto needed = [&](const auto& value, const char* name) {
    if (!value) {
      fail_field(inner.name(name), "[{}] is needed; got none", inner.name(name));
    }
    return *value;
  };
  const double entropy = needed(inner.number("entropy", 0, most_entropy, true), "entropy");
  how.unsure_above = std::max(static_cast<float>(entropy), std::numeric_limits<float>::min()); // 0 would be none
  how.extra_k = static_cast<int>(needed(inner.integer("extra_k", 1, most_top_k), "extra_k"));
  inner.refuse_unknown();
}

MemoryAsk read_object(const json::object& object, const ServedModel& served) {
  MemoryAsk ask;
  Fields fields(object, "memory.");
  ask.wanted.spaces = read_spaces(fields);
  if (const json::array* ids = fields.array("ids")) {
    ask.wanted.ids = read_names(*ids, "memory.ids");
    if (ids->empty()) {
      fail_field("memory.ids", "[memory.ids] must name a document at least; leave it out for all");
    }
  }
  if (const json::value* filter = fields.any("filter")) {
    ask.wanted.filter = parse_filter(*filter, "memory.filter");
  }
  if (const json::array* inlined = fields.array("inline")) {
    for (size_t i = 0; i < inlined->size(); ++i) {
      ask.wanted.inlined.push_back(read_document((*inlined)[i], fmt::format("memory.inline[{}]", i), served));
    }
  }
  if (ask.wanted.spaces.empty() && ask.wanted.inlined.empty()) {
    fail_field("memory.namespaces", "[memory] needs namespaces, or inline documents; got neither");
  }
  if (ask.wanted.spaces.empty() && (!ask.wanted.ids.empty() || !ask.wanted.filter.empty())) {
    fail_field("memory.namespaces", "[memory.namespaces] is needed for ids and filter");
  }
  ask.wanted.most = static_cast<int>(fields.integer("max_documents", 1, most_documents).value_or(0));
  ask.how.top_k = static_cast<int>(fields.integer("top_k", 0, most_top_k).value_or(ask.how.top_k));
  ask.how.block_tokens =
      static_cast<int>(fields.integer("block_tokens", 1, most_block_tokens).value_or(ask.how.block_tokens));
  read_uncertainty(fields, ask.how);
  ask.how.layers = read_layers(fields, served.memories->layers());
  if (const auto threshold = fields.number("similarity_threshold", -1, 1)) {
    ask.how.threshold = static_cast<float>(*threshold);
  }
  ask.how.contiguous = read_choice(fields, "position", "zero", "contiguous");
  ask.how.by_dot = read_choice(fields, "rank", "cosine", "dot");
  const std::string citations = fields.string("citations").value_or("none");
  if (citations != "none" && citations != "documents" && citations != "tokens") {
    fail_field("memory.citations", "[memory.citations] must be none, documents or tokens; got {}", citations);
  }
  ask.wanted.cited = citations != "none";
  ask.by_document = citations == "documents";
  ask.most_citations = static_cast<int>(fields.integer("max_citations", 1, 1000).value_or(ask.most_citations));
  fields.refuse_unknown();
  return ask;
}

/** The names of the Python server's plan. */
std::optional<MemoryAsk> read_plain(Fields& fields) {
  const auto use = fields.boolean("use_memories");
  const json::array* ids = fields.array("memories");
  const auto space = fields.string("memory_namespace");
  const auto top_k = fields.integer("memory_topk", 0, most_top_k);
  const auto threshold = fields.number("memory_similarity_threshold", -1, 1);
  const bool cited = fields.boolean("output_retrieved_memory_idx").value_or(false);
  if (!use.value_or(ids != nullptr || space.has_value())) {
    return std::nullopt;
  }
  MemoryAsk ask;
  ask.wanted.spaces_field = "memory_namespace";
  ask.wanted.ids_field = "memories";
  ask.wanted.spaces = {space.value_or(usual_space)};
  if (ids) {
    ask.wanted.ids = read_names(*ids, "memories");
    if (ids->empty()) {
      fail_field("memories", "[memories] must name a document at least; leave it out for all");
    }
  }
  ask.wanted.cited = cited;
  ask.by_document = false;
  ask.how.top_k = static_cast<int>(top_k.value_or(ask.how.top_k));
  if (threshold) {
    ask.how.threshold = static_cast<float>(*threshold);
  }
  return ask;
}

} // namespace

std::vector<std::string> read_spaces(Fields& fields) {
  const json::array* many = fields.array("namespaces");
  const auto one = fields.string("namespace");
  if (many && one) {
    fail_field(fields.name("namespace"), "[{}] and namespaces are the same; got both", fields.name("namespace"));
  }
  return many ? read_names(*many, fields.name("namespaces"))
      : one   ? std::vector<std::string>{*one}
              : std::vector<std::string>{};
}

NewDocument read_document(const json::value& value, const std::string& where, const ServedModel& served) {
  if (!value.is_object()) {
    fail_field(where, "[{}] must be an object; got {}", where, json_kind(value));
  }
  Fields fields(value.get_object(), where + ".");
  NewDocument out;
  if (const auto id = fields.string("id")) {
    out.id = *id;
    if (id->empty()) {
      fail_field(fields.name("id"), "[{}] must not be empty", fields.name("id"));
    }
  }
  out.text = fields.string("text");
  if (const json::array* ids = fields.array("token_ids")) {
    out.ids = read_ids(*ids, fields.name("token_ids"), served.engine->options().vocabulary);
  }
  if (const json::object* metadata = fields.object("metadata")) {
    out.metadata = *metadata;
  }
  fields.refuse_unknown();
  return out;
}

std::optional<MemoryAsk> read_memory(Fields& fields, const ServedModel& served) {
  auto plain = read_plain(fields);
  const json::object* object = fields.object("memory");
  if (!plain && !object) {
    return std::nullopt;
  }
  if (plain && object) {
    fail_field("memory", "[memory] and use_memories are the same; got both");
  }
  if (!served.memories) {
    fail_field(
        object ? "memory" : "use_memories",
        "[memory] the server was started without --use-extended-mind; got memories");
  }
  return plain ? plain : read_object(*object, served);
}

json::object memory_json(const MemoryView& view, const MemoryAsk& ask, const AnswerUse& use, int unsure) {
  json::array documents;
  for (const RecalledDocument& document : view.documents) {
    documents.push_back(
        json::object{{"id", document.id}, {"namespace", name_or_null(document.space)}, {"n_tokens", document.tokens}});
  }
  json::object out{{"tokens_searched", view.tokens}, {"documents", std::move(documents)}};
  if (ask.how.unsure_above > 0) {
    out["uncertain_steps"] = unsure;
  }
  if (!ask.wanted.cited) {
    return out;
  }
  const Citations cited = cite(view, use, ask.by_document, ask.most_citations);
  out["mass"] = shortest(cited.mass);
  json::array list;
  for (const Citation& citation : cited.list) {
    list.push_back(json::object{
        {"document_id", citation.id},
        {"namespace", name_or_null(citation.space)},
        {"score", shortest(citation.score)},
        {"similarity", shortest(citation.similarity)},
        {"count", citation.count},
        {"token_start", citation.token_begin},
        {"token_end", citation.token_end},
        {"char_start", citation.place.begin},
        {"char_end", citation.place.end},
        {"text", citation.text},
        {"answer_tokens", json::value_from(citation.answer_tokens)}});
  }
  out["citations"] = std::move(list);
  return out;
}

} // namespace parallm

// A request's memories (Extended Mind): the `memory` object of chat and
// completions, the plain names beside it, and what the answer says of them.
#pragma once

#include "api/http.h"
#include "base/json.h"
#include "mind/citations.h"

#include <functional>
#include <optional>

namespace parallm {

class Fields;
class Service;
struct Ask;
struct ServedModel;

/** The namespace of documents, and of requests in plain names, that name none. */
inline constexpr const char* usual_space = "default";

/** What a request asks of its memories. */
struct MemoryAsk {
  RecallDocuments wanted;
  RecallHow how;
  bool by_document = true; // citations, where `wanted` has them
  int most_citations = 10;
};

/** `memory`, or use_memories, memories, memory_namespace, memory_topk, memory_similarity_threshold; nothing where the
 * request has none. Errors: invalid, naming the field. */
std::optional<MemoryAsk> read_memory(Fields& fields, const ServedModel& served);

/** `namespaces` or `namespace`. */
std::vector<std::string> read_spaces(Fields& fields);

/** {"id"?, "text" | "token_ids", "metadata"?}. */
NewDocument read_document(const json::value& value, const std::string& where, const ServedModel& served);

/** What a choice says of its memories. `unsure`: how many of its tokens were chosen with extra_k. */
json::object memory_json(const MemoryView& view, const MemoryAsk& ask, const AnswerUse& use, int unsure);

} // namespace parallm

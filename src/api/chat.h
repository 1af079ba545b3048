// A conversation as the template reads it, from a chat request's body. Shared
// by chat and tokenize.
#pragma once

#include "api/service.h"
#include "base/json.h"

#include <cstdint>
#include <vector>

namespace parallm {

class Fields;

/** Reads messages, add_generation_prompt, continue_final_message,
 * chat_template_kwargs, reasoning_effort and add_special_tokens, renders and
 * tokenizes. Errors: invalid, naming messages[i].content[j]. */
std::vector<int32_t> read_chat_prompt(Fields& fields, const ServedModel& served);

} // namespace parallm

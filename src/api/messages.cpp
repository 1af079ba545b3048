#include "api/chat.h"

#include "api/schema.h"
#include "base/error.h"

namespace parallm {

namespace {

// Stands at the end of the message to go on with while the template renders it;
// the prompt is cut there. A template may trim a message's ends, never its
// middle, so trailing white space of the message survives.
constexpr std::string_view cut_here = "<|parallm-continue-here-6f1d|>";

std::string join_parts(const json::array& parts, const std::string& where) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    std::string field = fmt::format("{}[{}]", where, i);
    if (!parts[i].is_object()) {
      fail_field(field, "[{}] must be an object; got {}", field, json_kind(parts[i]));
    }
    Fields part(parts[i].get_object(), field + ".");
    auto type = part.string("type");
    if (type != "text") {
      fail_field(field, "[{}] has a type that is not supported, only text is; got {}", field, type.value_or("none"));
    }
    auto piece = part.string("text");
    if (!piece) {
      fail_field(field + ".text", "[{}.text] is required; got none", field);
    }
    text += *piece;
  }
  return text;
}

// The message with its content as one string; further fields (name, tool_calls,
// ...) go to the template as they are.
json::object read_message(const json::value& value, const std::string& where) {
  if (!value.is_object()) {
    fail_field(where, "[{}] must be an object; got {}", where, json_kind(value));
  }
  json::object message = value.get_object();
  Fields fields(value.get_object(), where + ".");
  auto role = fields.string("role");
  if (!role || role->empty()) {
    fail_field(where + ".role", "[{}.role] is required; got none", where);
  }
  const json::value* content = fields.any("content");
  fields.string("name");
  fields.array("tool_calls");
  fields.string("tool_call_id");
  fields.refuse({"audio", "function_call"});
  if (!content) {
    if (role != "assistant") {
      fail_field(where + ".content", "[{}.content] is required of the role {}; got none", where, *role);
    }
    message["content"] = nullptr;
  } else if (content->is_array()) {
    message["content"] = join_parts(content->get_array(), where + ".content");
  } else if (!content->is_string()) {
    fail_field(
        where + ".content", "[{}.content] must be a string or a list of parts; got {}", where, json_kind(*content));
  }
  return message;
}

json::array read_messages(Fields& fields) {
  const json::array* given = fields.array("messages");
  if (!given) {
    fail_field("messages", "[messages] is required; got none");
  }
  if (given->empty()) {
    fail_field("messages", "[messages] must not be empty");
  }
  json::array messages;
  for (size_t i = 0; i < given->size(); ++i) {
    messages.push_back(read_message((*given)[i], fmt::format("messages[{}]", i)));
  }
  return messages;
}

void mark_last(json::array& messages) {
  json::value* content = messages.back().get_object().if_contains("content");
  if (!content || !content->is_string()) {
    fail_field("continue_final_message", "[continue_final_message] needs a text in the last message; got none");
  }
  content->get_string().append(cut_here);
}

} // namespace

std::vector<int32_t> read_chat_prompt(Fields& fields, const ServedModel& served) {
  json::object variables;
  if (const json::object* more = fields.object("chat_template_kwargs")) {
    variables = *more;
  }
  json::array messages = read_messages(fields);
  bool resume = fields.boolean("continue_final_message").value_or(false);
  bool begin = fields.boolean("add_generation_prompt").value_or(!resume);
  bool special = fields.boolean("add_special_tokens").value_or(false);
  if (resume && begin) {
    fail_field(
        "continue_final_message",
        "[continue_final_message] and add_generation_prompt can't both be "
        "true");
  }
  if (auto effort = fields.string("reasoning_effort")) {
    variables["reasoning_effort"] = *effort;
  }
  if (!served.chat_template) {
    fail_field(
        "messages",
        "[messages] the model has no chat template: start the server with --chat-template FILE, or use completions");
  }
  if (resume) {
    mark_last(messages);
  }
  variables["messages"] = std::move(messages);
  variables["add_generation_prompt"] = begin;
  std::string text = served.chat_template->render(json::serialize(variables));
  if (resume) {
    size_t end = text.rfind(cut_here);
    if (end == std::string::npos) {
      fail_field(
          "continue_final_message",
          "[continue_final_message] the chat template does not show the last "
          "message");
    }
    text.resize(end);
  }
  auto ids = served.tokenizer->encode(text, special);
  if (ids.empty()) {
    fail_field("messages", "[messages] the chat template gives an empty text");
  }
  return ids;
}

} // namespace parallm

// Constrained output: OpenAI's response_format, vLLM's structured_outputs and
// its older guided_* fields.
#include "api/choices.h"
#include "api/schema.h"

namespace parallm {

namespace {

// A row's grammar as the engine asks for it.
class GrammarMask : public TokenMask {
 public:
  explicit GrammarMask(Grammar grammar) : grammar_(std::move(grammar)) {}
  void allowed(std::span<uint32_t> words) override {
    grammar_.allowed(words);
  }
  void accept(int32_t token) override {
    grammar_.accept(token);
  }

 private:
  Grammar grammar_;
};

struct Constraint {
  std::string field;
  GrammarKind kind;
  std::string source;
};

using Constraints = std::vector<Constraint>;

// A schema as an object, or as the JSON text of one.
void add_schema(Constraints& found, Fields& fields, std::string_view name) {
  const json::value* schema = fields.any(name);
  if (!schema) {
    return;
  }
  json::value parsed = schema->is_string() ? parse_json(schema->get_string(), fields.name(name)) : *schema;
  if (!parsed.is_object() && !parsed.is_bool()) {
    fail_field(fields.name(name), "[{}] must be a JSON schema; got {}", fields.name(name), json_kind(parsed));
  }
  found.push_back({fields.name(name), GrammarKind::json_schema, json::serialize(parsed)});
}

void add_text(Constraints& found, Fields& fields, std::string_view name, GrammarKind kind) {
  if (auto source = fields.string(name)) {
    found.push_back({fields.name(name), kind, *source});
  }
}

void add_choice(Constraints& found, Fields& fields, std::string_view name) {
  const json::array* choices = fields.array(name);
  if (!choices) {
    return;
  }
  std::string lark;
  for (const json::value& choice : *choices) {
    if (!choice.is_string() || choice.get_string().empty()) {
      fail_field(
          fields.name(name),
          "[{}] must hold strings that are not empty; got {}",
          fields.name(name),
          json_excerpt(choice));
    }
    lark += (lark.empty() ? "start: " : " | ") + json::serialize(choice);
  }
  if (lark.empty()) {
    fail_field(fields.name(name), "[{}] must not be empty", fields.name(name));
  }
  found.push_back({fields.name(name), GrammarKind::lark, lark});
}

void add_response_format(Constraints& found, Fields& fields) {
  const json::object* format = fields.object("response_format");
  if (!format) {
    return;
  }
  Fields inner(*format, "response_format.");
  auto type = inner.string("type");
  if (type == "text") {
    return;
  }
  if (type == "json_object") {
    found.push_back({"response_format", GrammarKind::json_object, ""});
    return;
  }
  if (type != "json_schema") {
    fail_field(
        "response_format.type",
        "[response_format.type] must be text, json_object or json_schema; got "
        "{}",
        type.value_or("none"));
  }
  const json::object* schema = inner.object("json_schema");
  if (!schema) {
    fail_field("response_format.json_schema", "[response_format.json_schema] is required; got none");
  }
  Fields named(*schema, "response_format.json_schema.");
  add_schema(found, named, "schema");
  if (found.empty()) {
    fail_field("response_format.json_schema.schema", "[response_format.json_schema.schema] is required; got none");
  }
}

void add_structured_outputs(Constraints& found, Fields& fields) {
  const json::object* outputs = fields.object("structured_outputs");
  if (!outputs) {
    return;
  }
  Fields inner(*outputs, "structured_outputs.");
  add_schema(found, inner, "json");
  add_text(found, inner, "regex", GrammarKind::regex);
  add_text(found, inner, "grammar", GrammarKind::lark);
  add_choice(found, inner, "choice");
  if (inner.boolean("json_object").value_or(false)) {
    found.push_back({"structured_outputs.json_object", GrammarKind::json_object, ""});
  }
  inner.refuse({"structural_tag"});
}

} // namespace

std::function<std::shared_ptr<TokenMask>()> read_grammar(Fields& fields, const ServedModel& served) {
  Constraints found;
  add_response_format(found, fields);
  add_structured_outputs(found, fields);
  add_schema(found, fields, "guided_json");
  add_text(found, fields, "guided_regex", GrammarKind::regex);
  add_text(found, fields, "guided_grammar", GrammarKind::lark);
  add_choice(found, fields, "guided_choice");
  if (found.empty()) {
    return nullptr;
  }
  if (found.size() > 1) {
    fail_field(found[1].field, "[{}] can't stand beside {}: one constraint a request", found[1].field, found[0].field);
  }
  if (!served.grammars.valid()) {
    fail_field(found[0].field, "[{}] is not supported for this model", found[0].field);
  }
  return [grammars = served.grammars, constraint = found[0]] {
    return std::make_shared<GrammarMask>(grammars.get()->compile(constraint.kind, constraint.source));
  };
}

} // namespace parallm

#include "models/gguf_text.h"

#include "models/gguf_reader.h"

namespace parallm {

GgufTokenizer read_gguf_tokenizer(const std::string& path) {
  const auto metadata = open_gguf_contents(path).metadata;
  GgufTokenizer out;
  auto key = [](const char* name) { return std::string("tokenizer.ggml.") + name; };
  auto flag = [&](const char* name) {
    return metadata.has(key(name)) ? std::optional(metadata.boolean(key(name), false)) : std::nullopt;
  };
  out.model = metadata.text(key("model"));
  out.pre = metadata.text(key("pre"), "default");
  out.tokens = metadata.texts(key("tokens"));
  auto types = metadata.integers(key("token_type"));
  out.types.assign(types.begin(), types.end());
  auto scores = metadata.numbers(key("scores"));
  out.scores.assign(scores.begin(), scores.end());
  out.merges = metadata.texts(key("merges"));
  out.bos = metadata.integer(key("bos_token_id"), -1);
  out.eos = metadata.integer(key("eos_token_id"), -1);
  out.eot = metadata.integer(key("eot_token_id"), -1);
  out.eom = metadata.integer(key("eom_token_id"), -1);
  out.unk = metadata.integer(key("unknown_token_id"), -1);
  out.add_bos = flag("add_bos_token");
  out.add_eos = flag("add_eos_token");
  out.add_space_prefix = flag("add_space_prefix");
  out.remove_extra_whitespaces = flag("remove_extra_whitespaces");
  out.chat_template = metadata.text("tokenizer.chat_template", "");
  const std::string named = "tokenizer.chat_template.";
  for (auto& [name, value] : metadata.all()) {
    if (name.starts_with(named)) {
      out.named_templates[name.substr(named.size())] = metadata.text(name);
    }
  }
  return out;
}

} // namespace parallm

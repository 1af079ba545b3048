// A model's chat template (Jinja, as transformers renders it) on minijinja
// behind rust/text_ffi. Immutable after loading, so any thread may use it at
// once.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace parallm {

class ChatTemplate {
 public:
  /** `special_tokens`: JSON object of the names a template may use
   * ("bos_token": "<s>", ...). Errors: invalid. */
  ChatTemplate(std::string_view source, std::string_view special_tokens);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  /** `variables`: JSON object with "messages", "add_generation_prompt",
   * "tools", ... Errors: invalid (also what the template itself raises: its
   * text). */
  std::string render(std::string_view variables) const;

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

} // namespace parallm

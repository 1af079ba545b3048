#include "text/chat_template.h"

#include "text/ffi.h"

namespace parallm {

struct ChatTemplate::Handle {
  Owned<text_template, text_template_close> ffi;
};

ChatTemplate::ChatTemplate(std::string_view source, std::string_view special_tokens)
    : handle_(std::make_unique<Handle>()) {
  text_bytes error;
  text_template* opened = nullptr;
  int status =
      text_template_open(source.data(), source.size(), special_tokens.data(), special_tokens.size(), &opened, &error);
  expect(status, error, "chat_template");
  handle_->ffi.reset(opened);
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(std::string_view variables) const {
  text_bytes error, text;
  int status = text_template_render(handle_->ffi.get(), variables.data(), variables.size(), &text, &error);
  expect(status, error, "chat_template");
  return take(text);
}

} // namespace parallm

// rust/text_ffi's C types held and called from C++: handles that close
// themselves, errors as our own. Included only by the .cpp files of this
// folder.
#pragma once

#include "base/error.h"
#include "text/decoder.h"
#include "text/tokenizer.h"

#include <text_ffi.h>

#include <memory>
#include <string>
#include <vector>

namespace parallm {

template <auto close>
struct Closer {
  template <typename T>
  void operator()(T* handle) const {
    close(handle);
  }
};

template <typename T, auto close>
using Owned = std::unique_ptr<T, Closer<close>>;

inline std::string take(text_bytes bytes) {
  std::string text(bytes.data, bytes.size);
  text_bytes_free(bytes);
  return text;
}

/** Throws what a call's status says. `where`: the error text's first word. */
inline void expect(int status, text_bytes& error, const char* where) {
  if (status != TEXT_OK) {
    fail(status == TEXT_INVALID ? Kind::invalid : Kind::internal, "[{}] {}", where, take(error));
  }
}

struct Tokenizer::Handle {
  Owned<text_tokenizer, text_tokenizer_close> ffi;
  std::vector<std::string> pieces; // by id
  std::string flags; // TEXT_TOKEN_*, by id
  Joining joining;
  std::vector<int32_t> begin; // what the post-processor puts before a text
};

} // namespace parallm

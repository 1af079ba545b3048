// A SentencePiece model as the tokenizer.json that Hugging Face's library
// opens, encoding as SentencePiece does by the model's own settings. Free
// functions, any thread.
#pragma once

#include "text/spm_model.h"
#include "text/tokenizer.h"

namespace parallm {

struct SpmOptions {
  /** Where an added token parts a text, only the first part gets the model's
   * space in front; else each part does. */
  bool space_first_only = false;
  /** User-defined pieces are added tokens, so that what follows one counts as a
   * new part (llama.cpp's way); else they stand inside a part (SentencePiece's). */
  bool user_defined_apart = false;
};

/** Its control pieces become special added tokens. Errors: invalid. */
TokenizerSource spm_tokenizer(const SpmModel& model, const SpmOptions& options);

} // namespace parallm

// What a checkpoint says about text: its tokenizer, chat templates and special
// tokens, wherever the format keeps them. Any thread.
#pragma once

#include "text/text_folder.h"

#include <string>

namespace parallm {

/** Of a folder: what text/text_folder.h reads; of a GGUF file: its metadata.
 * Errors: invalid, naming the file. */
TextFiles text_files(const std::string& path);

} // namespace parallm

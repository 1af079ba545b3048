// Many prompts' texts as they come, side by side: batch_stream_generate_text
// MODEL PROMPT...
#include "library/mlx_parallm.h"

#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: " << argv[0] << " MODEL PROMPT...\n";
    return 2;
  }
  std::vector<std::string> prompts(argv + 2, argv + argc);
  parallm::LanguageModel model(argv[1]);
  auto pieces = parallm::batch_stream_generate_text(model, prompts, {.max_tokens = 64, .chat = true});
  while (auto piece = pieces.next()) {
    std::cout << "[" << piece->prompt << "] " << piece->text << "\n";
    if (piece->done) {
      std::cout << "[" << piece->prompt << "] done: " << piece->done->ids.size() << " tokens\n";
    }
  }
}

// One prompt's text as it comes: stream_generate MODEL PROMPT
#include "library/mlx_parallm.h"

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " MODEL PROMPT\n";
    return 2;
  }
  parallm::LanguageModel model(argv[1]);
  auto pieces = parallm::stream_generate(model, argv[2], {.max_tokens = 200, .chat = true});
  while (auto piece = pieces.next()) {
    std::cout << piece->text << std::flush;
  }
  std::cout << "\n";
}

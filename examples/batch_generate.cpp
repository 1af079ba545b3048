// All prompts at once: batch_generate MODEL PROMPT...
#include "library/mlx_parallm.h"

#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: " << argv[0] << " MODEL PROMPT...\n";
    return 2;
  }
  std::vector<std::string> prompts(argv + 2, argv + argc);
  parallm::LanguageModel model(argv[1]);
  auto answers = parallm::batch_generate(model, prompts, {.max_tokens = 64, .chat = true});
  for (size_t i = 0; i < prompts.size(); ++i) {
    std::cout << "Q: " << prompts[i] << "\nA: " << answers[i].text << "\n\n";
  }
}

// Ids in, ids out, with the log probability of each: generate_step MODEL TEXT
#include "library/mlx_parallm.h"

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " MODEL TEXT\n";
    return 2;
  }
  parallm::LanguageModel model(argv[1]);
  auto steps =
      parallm::generate_step(model, model.tokenizer().encode(argv[2], true), 32, {.temperature = 0, .logprobs = 0});
  while (auto step = steps.next()) {
    std::cout << step->token.id << "\t" << step->token.logprob << "\t" << model.tokenizer().bytes(step->token.id)
              << "\n";
  }
}

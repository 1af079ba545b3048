// A text that the model reads once and every question may attend to: memories MODEL TEXT QUESTION
#include "library/memories.h"

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: " << argv[0] << " MODEL TEXT QUESTION\n";
    return 2;
  }
  parallm::LanguageModel model(argv[1], {.extended_mind = true});
  const auto memories = parallm::open_memories(model, {}); // kept in ~/.local/share/mlx_parallm/memories
  const int count = memories->add_memories("example", "text", model.tokenizer().encode(argv[2], false), {});
  std::cout << count << " memories\n";
  for (bool with : {false, true}) {
    parallm::Request request;
    request.prompt = model.tokenizer().encode(argv[3], true);
    request.max_tokens = 12;
    request.sampling.temperature = 0;
    if (with) {
      request.recall = memories->recall("example");
    }
    parallm::Steps steps(model.engine().generate(std::move(request)));
    std::vector<int32_t> ids;
    while (auto token = steps.next()) {
      ids.push_back(token->token.id);
    }
    std::cout << (with ? "with:    " : "without: ") << argv[3] << model.tokenizer().decode(ids, true) << "\n";
  }
}

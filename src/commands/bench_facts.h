// What memory-bench asks about: made-up facts, which no model can know, and texts without any. The same seed gives the
// same ones everywhere. Free functions, any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace parallm {

/** A code, a name, a day or a year of something that there isn't. */
struct Fact {
  std::string statement; // "The access code of the Tirvo archive is 7392."
  std::string question; // "Question: ...?\nAnswer: The access code of the Tirvo archive is"
  std::string answer; // " 7392"
};

/** No two are about the same thing. */
std::vector<Fact> make_facts(int count, uint64_t seed);

/** Some plain sentences each, without a number or anything that the facts are about. */
std::vector<std::string> make_noise(int count, uint64_t seed);

} // namespace parallm

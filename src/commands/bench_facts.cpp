#include "commands/bench_facts.h"

#include <fmt/format.h>

#include <random>
#include <set>
#include <span>

namespace parallm {

namespace {

// The standard library's distributions differ between implementations; this engine does not.
using Random = std::mt19937_64;

constexpr const char* onsets[] = {"b", "br", "d", "dr", "f", "g", "gl", "h", "k", "l",
                                  "m", "n",  "p", "r",  "s", "t", "tr", "v", "z", "st"};
constexpr const char* vowels[] = {"a", "e", "i", "o", "u"};
constexpr const char* codas[] = {"", "", "n", "r", "l", "s", "k", "m"};
constexpr const char* given[] = {
    "Anna",
    "Peter",
    "Maria",
    "Simon",
    "Clara",
    "Victor",
    "Helen",
    "Martin",
    "Laura",
    "Oscar",
    "Emma",
    "Felix",
    "Julia",
    "Thomas",
    "Nora",
    "Daniel"};
constexpr const char* family[] = {
    "Baker",
    "Miller",
    "Cooper",
    "Fisher",
    "Mason",
    "Taylor",
    "Hunter",
    "Carter",
    "Porter",
    "Turner",
    "Walker",
    "Parker",
    "Foster",
    "Weaver",
    "Archer",
    "Potter"};
constexpr const char* months[] = {
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December"};
constexpr const char* numbers[] = {"access code", "serial number", "telephone number", "locker number", "room number"};
constexpr const char* rooms[] = {
    "archive",
    "vault",
    "laboratory",
    "library",
    "warehouse",
    "observatory",
    "museum",
    "clinic",
    "bakery",
    "embassy",
    "hotel",
    "shipyard"};
constexpr const char* offices[] = {
    "harbour master",
    "mayor",
    "chief surgeon",
    "head gardener",
    "judge",
    "bishop",
    "postmaster",
    "captain",
    "ambassador",
    "librarian",
    "cook",
    "teacher"};
constexpr const char* events[] = {
    "festival",
    "fair",
    "regatta",
    "parade",
    "auction",
    "election",
    "harvest",
    "concert",
    "circus",
    "meeting",
    "performance",
    "tournament"};
constexpr const char* buildings[] = {
    "bridge",
    "tower",
    "mill",
    "canal",
    "theatre",
    "mine",
    "chapel",
    "castle",
    "station",
    "prison",
    "school",
    "lighthouse"};
constexpr const char* went[] =
    {"walked through", "came back to", "sat down in", "looked around", "waited in", "ran across"};
constexpr const char* places[] = {"garden", "kitchen", "market", "forest", "village", "valley", "orchard", "station"};
constexpr const char* kinds[] = {"old", "quiet", "narrow", "bright", "wet", "green", "small", "empty"};
constexpr const char* did[] = {"found", "carried", "bought", "painted", "lost", "mended", "forgot", "drew"};
constexpr const char* things[] = {"chair", "basket", "lamp", "blanket", "letter", "bottle", "ladder", "hat"};

const char* one_of(Random& random, std::span<const char* const> words) {
  return words[random() % words.size()];
}

std::string made_up_name(Random& random) {
  std::string out;
  for (int i = 0; i < 2; ++i) {
    out += one_of(random, onsets);
    out += one_of(random, vowels);
    out += one_of(random, codas);
  }
  out[0] = static_cast<char>(out[0] - 'a' + 'A');
  return out;
}

std::string person(Random& random) {
  const char* first = one_of(random, given);
  return fmt::format("{} {}", first, one_of(random, family));
}

/** `of`: "the access code of the Tirvo archive"; `verb`: how the statement goes on. */
Fact fact(const std::string& question, const std::string& of, const char* verb, const std::string& answer) {
  const std::string restated = fmt::format("The {} {}", of, verb);
  return {
      fmt::format("{} {}.", restated, answer),
      fmt::format("Question: {}\nAnswer: {}", question, restated),
      " " + answer};
}

Fact make_fact(Random& random, int kind, const std::string& name) {
  if (kind == 0) {
    const std::string number = one_of(random, numbers);
    const std::string of = fmt::format("{} of the {} {}", number, name, one_of(random, rooms));
    return fact(fmt::format("What is the {}?", of), of, "is", fmt::format("{}", 1000 + random() % 9000));
  }
  if (kind == 1) {
    const std::string of = fmt::format("{} of {}", one_of(random, offices), name);
    return fact(fmt::format("Who is the {}?", of), of, "is", person(random));
  }
  if (kind == 2) {
    const std::string of = fmt::format("{} {}", name, one_of(random, events));
    const char* month = one_of(random, months);
    return fact(
        fmt::format("When does the {} begin?", of), of, "begins on", fmt::format("{} {}", month, 1 + random() % 28));
  }
  const std::string of = fmt::format("{} of {}", one_of(random, buildings), name);
  return fact(
      fmt::format("In which year was the {} opened?", of),
      of,
      "was opened in",
      fmt::format("{}", 1500 + random() % 450));
}

} // namespace

std::vector<Fact> make_facts(int count, uint64_t seed) {
  Random random(seed);
  std::set<std::string> names;
  std::vector<Fact> out;
  while (static_cast<int>(out.size()) < count) {
    const std::string name = made_up_name(random);
    if (names.insert(name).second) {
      out.push_back(make_fact(random, static_cast<int>(out.size() % 4), name));
    }
  }
  return out;
}

std::vector<std::string> make_noise(int count, uint64_t seed) {
  Random random(seed ^ 0x6e6f697365); // not the facts' numbers
  std::vector<std::string> out;
  for (int i = 0; i < count; ++i) {
    std::string text;
    for (int sentence = 0; sentence < 4; ++sentence) {
      const std::string who = person(random);
      const char *how = one_of(random, went), *where_kind = one_of(random, kinds), *where = one_of(random, places);
      const char *what = one_of(random, did), *kind = one_of(random, kinds), *thing = one_of(random, things);
      text += fmt::format(
          "{}{} {} the {} {} and {} the {} {}.",
          text.empty() ? "" : " ",
          who,
          how,
          where_kind,
          where,
          what,
          kind,
          thing);
    }
    out.push_back(std::move(text));
  }
  return out;
}

} // namespace parallm

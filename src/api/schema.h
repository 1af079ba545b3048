// Reading a request body field by field: types, ranges, null as absent, and
// what is left over. Each getter names the field in its error; a field that no
// getter asked for is unknown. One request, one thread.
#pragma once

#include "base/json.h"
#include "engine/sampling.h"

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace parallm {

class Tokenizer;

class Fields {
 public:
  /** `where` stands before each name in errors: "stream_options." */
  explicit Fields(const json::object& object, std::string where = "");

  // Absent and null are the same: nullopt or nullptr. Errors: invalid, naming
  // the field.
  const json::value* any(std::string_view name);
  std::optional<bool> boolean(std::string_view name);
  std::optional<int64_t> integer(
      std::string_view name,
      int64_t min = std::numeric_limits<int64_t>::min(),
      int64_t max = std::numeric_limits<int64_t>::max());
  std::optional<double> number(std::string_view name, double min, double max, bool min_open = false);
  std::optional<std::string> string(std::string_view name);
  const json::object* object(std::string_view name);
  const json::array* array(std::string_view name);

  /** These have no effect on an answer and are accepted. */
  void accept(std::initializer_list<std::string_view> names);
  /** These can't be honoured: an error, unless they ask for nothing (null,
   * false, 0, "", [], {}). */
  void refuse(std::initializer_list<std::string_view> names);

  /** Names of the fields that nobody asked for, in the body's order. */
  std::vector<std::string> unknown() const;
  /** An error where there is one. */
  void refuse_unknown() const;

  std::string name(std::string_view field) const;

 private:
  const json::object& object_;
  std::string where_;
  std::set<std::string_view> known_;
};

/** An integer in [min, max]; 16.0 counts as one. Errors: invalid, naming the
 * field. */
int64_t read_integer(const json::value& value, const std::string& field, int64_t min, int64_t max);

/** What a value must be to be a token id. */
std::vector<int32_t> read_ids(const json::array& array, const std::string& field, int vocabulary);

/** Every number of sampling_fields(), logit_bias, stop_token_ids, ignore_eos
 * and seed, over the defaults given. A request without a seed gets a random
 * one. */
Sampling read_sampling(Fields& fields, const Sampling& defaults, const Tokenizer& tokenizer, int vocabulary);

/** `stop`: a string or up to 16. */
std::vector<std::string> read_stops(Fields& fields);

/** The seed of the index-th choice of a request: choices differ, and one seed
 * gives all of them again. */
uint64_t choice_seed(uint64_t seed, uint64_t index);

} // namespace parallm

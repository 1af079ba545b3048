// A model's config.json (or a part of it): a JSON object whose getters check
// the type and name the field in errors. `null` means absent. Plain data; any
// thread.
#pragma once

#include <boost/json/object.hpp>

#include <string>
#include <vector>

namespace parallm {

struct Config {
  boost::json::object json;
  std::string where = "config.json"; // named in errors

  bool has(std::string_view name) const;

  // Without a fallback an absent field is an error.
  int integer(std::string_view name) const;
  int integer(std::string_view name, int fallback) const;
  /** An integer above 0: a size. */
  int count(std::string_view name) const;
  int count(std::string_view name, int fallback) const;
  double number(std::string_view name) const;
  double number(std::string_view name, double fallback) const;
  bool boolean(std::string_view name, bool fallback) const;
  std::string text(std::string_view name) const;
  std::string text(std::string_view name, std::string fallback) const;
  std::vector<std::string> texts(std::string_view name) const;
  std::vector<double> numbers(std::string_view name) const;
  /** One integer or a list of them; empty where absent. */
  std::vector<int> integers(std::string_view name) const;
  Config object(std::string_view name) const;
  std::vector<Config> objects(std::string_view name) const;

 private:
  const boost::json::value& at(std::string_view name) const;
};

/** `config` with the fields of `defaults` that it lacks: what a model's family
 * leaves out of its config.json. */
Config with_defaults(Config config, const boost::json::object& defaults);

/** `config` with its field `second` under the name `first` too: a family's own
 * names for common fields. */
Config with_names(Config config, const std::vector<std::pair<std::string, std::string>>& names);

/** Errors: invalid, for a file that can't be read or holds no JSON object. */
Config read_config(const std::string& path);

} // namespace parallm

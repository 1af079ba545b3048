// An approximate index of vectors, beside the records that hold them exactly: it proposes, and who asks scores again.
// One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace parallm {

/** Of vectors of one length; all are unit vectors, so that the inner product is the cosine. */
class Nearest {
 public:
  virtual ~Nearest() = default;
  /** `units` are the keys' vectors, one after another. */
  virtual void add(std::span<const int64_t> keys, std::span<const float> units) = 0;
  virtual void remove(int64_t key) = 0;
  /** About the `count` most similar. */
  virtual std::vector<int64_t> search(std::span<const float> unit, size_t count) = 0;
};

using MakeNearest = std::function<std::unique_ptr<Nearest>(size_t dimensions)>;

/** The documents of a namespace in such indexes, one for each length of vector. */
class NearestDocuments {
 public:
  explicit NearestDocuments(MakeNearest make) : make_(std::move(make)) {}

  struct Item {
    std::string id;
    std::span<const float> embedding; // empty: none
  };
  /** All at once is faster than one by one. */
  void add(const std::vector<Item>& items);
  void remove(const std::string& id);
  /** About the `count` most similar ids. */
  std::vector<std::string> search(const std::vector<float>& embedding, size_t count);

 private:
  struct Place {
    size_t dimensions;
    int64_t key;
  };
  MakeNearest make_;
  std::map<size_t, std::unique_ptr<Nearest>> indexes_; // by dimensions
  std::unordered_map<std::string, Place> places_;
  std::unordered_map<int64_t, std::string> ids_;
  int64_t next_key_ = 0;
};

} // namespace parallm

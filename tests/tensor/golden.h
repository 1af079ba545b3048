// Runs a model over flat steps for tests: sequences with their own block
// tables, as a scheduler would lay them out.
#pragma once

#include "base/error.h"
#include "models/checkpoint.h"
#include "models/model.h"
#include "nn/device.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <numeric>

namespace parallm::test {

// Made by tools/golden.py (`make golden`). The tests run in the source folder.
inline const std::filesystem::path golden_folder =
    std::getenv("PARALLM_GOLDEN") ? std::getenv("PARALLM_GOLDEN") : "build/golden";

/** Every model that is there: a file in tests/golden/models, or its 4-bit form. */
inline std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  if (std::filesystem::exists(golden_folder)) {
    for (auto& entry : std::filesystem::directory_iterator(golden_folder)) {
      if (std::filesystem::exists(entry.path() / "reference.safetensors")) {
        names.push_back(entry.path().filename().string());
      }
    }
  }
  std::sort(names.begin(), names.end());
  REQUIRE_MESSAGE(!names.empty(), "no models in ", golden_folder.string(), ": run `make golden`");
  return names;
}

/** MLX's own ops instead of our kernels, while it lives. */
struct MlxOps {
  explicit MlxOps(bool on) {
    force_mlx_ops(on);
  }
  ~MlxOps() {
    force_mlx_ops(false);
  }
};

struct Sequence {
  std::vector<int> tokens; // prompt, then what follows
  int prompt = 0; // its length
  mx::array logits; // [1 + following, V] after the prompt, after each token
                    // that follows
};

inline std::vector<int> ints(mx::array x) {
  x = mx::contiguous(mx::astype(x, mx::int32));
  mx::eval(x);
  return {x.data<int>(), x.data<int>() + x.size()};
}

inline std::vector<float> floats(mx::array x) {
  x = mx::contiguous(mx::astype(x, mx::float32));
  mx::eval(x);
  return {x.data<float>(), x.data<float>() + x.size()};
}

inline std::vector<Sequence> references_of(const std::filesystem::path& folder) {
  auto arrays = mx::load_safetensors((folder / "reference.safetensors").string()).first;
  std::vector<Sequence> out;
  for (int i = 0; arrays.contains(fmt::format("prompt.{}", i)); ++i) {
    auto tokens = ints(arrays.at(fmt::format("prompt.{}", i)));
    int prompt = tokens.size();
    auto next = ints(arrays.at(fmt::format("next.{}", i)));
    tokens.insert(tokens.end(), next.begin(), next.end());
    out.push_back({tokens, prompt, arrays.at(fmt::format("logits.{}", i))});
  }
  return out;
}

inline std::vector<Sequence> references(const std::string& name) {
  return references_of(golden_folder / name);
}

/** A model with its caches. */
struct Loaded {
  explicit Loaded(
      const std::string& path,
      std::optional<mx::Dtype> dtype = mx::float32,
      int blocks = 64,
      int block_size = 4)
      : checkpoint(open_checkpoint(path, {.dtype = dtype})),
        model(make_model(checkpoint.config, checkpoint.weights)),
        caches(make_paged_caches(
            model->cache_specs(),
            {.block_size = block_size, .blocks = blocks, .slots = 8, .dtype = checkpoint.kv_dtype})),
        block_size(block_size),
        blocks(blocks) {}

  Checkpoint checkpoint;
  std::unique_ptr<Model> model;
  std::unique_ptr<Caches> caches;
  int block_size;
  int blocks;
};

/** One sequence's tokens of a step. */
struct Piece {
  std::vector<int> ids;
  int offset;
  std::vector<int> blocks;
  int rope_length;
  int slot = 0;
};

/** The step's logits, one row of floats for each token. */
inline std::vector<std::vector<float>> step(Loaded& loaded, const std::vector<Piece>& pieces) {
  std::vector<int> ids;
  std::vector<Span> spans;
  for (auto& piece : pieces) {
    spans.push_back(
        {int(ids.size()), int(piece.ids.size()), piece.offset, piece.blocks, piece.rope_length, piece.slot});
    ids.insert(ids.end(), piece.ids.begin(), piece.ids.end());
  }
  loaded.caches->begin(spans);
  mx::array tokens(ids.data(), {int(ids.size())}, mx::int32);
  auto hidden = loaded.model->hidden(tokens, *loaded.caches);
  auto all = floats(loaded.model->logits(hidden));
  int width = loaded.model->vocabulary();
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i < ids.size(); ++i) {
    rows.emplace_back(all.begin() + i * width, all.begin() + (i + 1) * width);
  }
  return rows;
}

/** Feeds one sequence piece by piece and keeps the logits of the last prompt
 * token and of all after it. */
class Feed {
 public:
  Feed(const Sequence& sequence, std::vector<int> blocks, int slot)
      : sequence_(sequence), blocks_(std::move(blocks)), slot_(slot) {}

  bool done() const {
    return at_ == int(sequence_.tokens.size());
  }
  bool prefilling() const {
    return at_ < sequence_.prompt;
  }

  Piece piece(int chunk) const {
    int count = prefilling() ? std::min(chunk, sequence_.prompt - at_) : 1;
    auto first = sequence_.tokens.begin() + at_;
    return {{first, first + count}, at_, blocks_, sequence_.prompt, slot_};
  }

  void take(std::vector<std::vector<float>>::const_iterator rows, int count) {
    at_ += count;
    if (at_ >= sequence_.prompt) {
      logits.push_back(rows[count - 1]);
    }
  }

  std::vector<std::vector<float>> logits;

 private:
  const Sequence& sequence_;
  std::vector<int> blocks_;
  int slot_;
  int at_ = 0;
};

inline std::vector<int> block_range(int first, int count, int stride = 1) {
  std::vector<int> out;
  for (int i = 0; i < count; ++i) {
    out.push_back(first + i * stride);
  }
  return out;
}

constexpr int most_blocks = 20; // of a sequence

/** One sequence alone, its prompt in chunks. */
inline std::vector<std::vector<float>> alone(Loaded& loaded, const Sequence& sequence, int chunk, int first_block = 3) {
  Feed feed(sequence, block_range(first_block, most_blocks), 5);
  while (!feed.done()) {
    auto piece = feed.piece(chunk);
    auto rows = step(loaded, {piece});
    feed.take(rows.begin(), piece.ids.size());
  }
  return feed.logits;
}

/** All at once; row i joins at step i and reads its prompt in chunks of
 * chunks[i], so that prefill and decoding meet in a step. */
inline std::vector<std::vector<std::vector<float>>>
together(Loaded& loaded, const std::vector<Sequence>& sequences, const std::vector<int>& chunks) {
  std::vector<Feed> feeds;
  int count = sequences.size();
  for (int i = 0; i < count; ++i) {
    feeds.emplace_back(sequences[i], block_range(i, most_blocks, count), count - i); // interleaved
  }
  for (int now = 0;; ++now) {
    std::vector<Piece> pieces;
    std::vector<int> rows_of;
    for (bool prefilling : {false, true}) { // decoding rows first
      for (int i = 0; i < count; ++i) {
        bool in = now >= i && !feeds[i].done();
        if (in && feeds[i].prefilling() == prefilling) {
          pieces.push_back(feeds[i].piece(chunks[i]));
          rows_of.push_back(i);
        }
      }
    }
    if (pieces.empty() && now >= count) {
      break;
    }
    auto rows = step(loaded, pieces);
    auto at = rows.cbegin();
    for (size_t p = 0; p < pieces.size(); ++p) {
      int length = pieces[p].ids.size();
      feeds[rows_of[p]].take(at, length);
      at += length;
    }
  }
  std::vector<std::vector<std::vector<float>>> out;
  for (auto& feed : feeds) {
    out.push_back(feed.logits);
  }
  return out;
}

/** Largest difference, relative to the largest reference value. */
inline double difference(const std::vector<std::vector<float>>& got, const Sequence& sequence) {
  auto wanted = floats(sequence.logits);
  double worst = 0, scale = 0;
  size_t width = wanted.size() / got.size();
  REQUIRE(got.size() * got[0].size() == wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    double d = std::abs(double(got[i / width][i % width]) - wanted[i]);
    worst = std::isnan(d) ? 1e9 : std::max(worst, d);
    scale = std::max(scale, double(std::abs(wanted[i])));
  }
  return worst / scale;
}

} // namespace parallm::test

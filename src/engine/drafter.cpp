#include "engine/drafter.h"

#include "nn/host_array.h"

#include <algorithm>

namespace parallm {

Drafter::Drafter(std::unique_ptr<Model> model, std::unique_ptr<Caches> caches)
    : model_(std::move(model)), caches_(std::move(caches)) {}

mx::array
Drafter::draw(const mx::array& hidden, const std::vector<const RowStep*>& rows, int ahead, const Sampler& sampler) {
  std::vector<Draw> draws;
  for (const RowStep* row : rows) {
    draws.push_back({row, ahead});
  }
  return pick(mx::astype(model_->logits(hidden), mx::float32), sampler.pick_values(draws));
}

Drafter::Guesses Drafter::guess(const Plan& plan, const Sampler& sampler, int vocabulary) {
  std::vector<const RowStep*> rows; // that guess
  std::vector<int32_t> ids, last;
  std::vector<Span> spans;
  for (const RowStep& row : plan.rows) {
    if (row.draft_ids.empty()) {
      continue;
    }
    const int first = ids.size(), count = row.draft_ids.size();
    spans.push_back({first, count, row.draft_start, row.blocks, row.rope_length, row.slot});
    for (int32_t id : row.draft_ids) { // a request may name ids that the larger model alone has
      ids.push_back(std::min(id, model_->vocabulary() - 1));
    }
    if (row.guesses > 0) {
      rows.push_back(&row);
      last.push_back(first + count - 1);
    }
  }
  caches_->begin(std::move(spans));
  Guesses out{model_->hidden(host_array(ids), *caches_), {}};
  if (rows.empty()) {
    return out;
  }
  std::vector<mx::array> passes; // one guess of each row that makes so many
  std::vector<std::pair<const RowStep*, int>> made; // the row and number of each guess in them
  auto hidden = mx::take(out.read, host_array(last), 0);
  for (int ahead = 0;; ++ahead) {
    auto guesses = draw(hidden, rows, ahead, sampler);
    passes.push_back(mx::minimum(guesses, mx::array(vocabulary - 1)));
    std::vector<const RowStep*> more;
    std::vector<int32_t> places;
    spans.clear();
    for (size_t r = 0; r < rows.size(); ++r) {
      const RowStep& row = *rows[r];
      made.emplace_back(&row, ahead);
      if (row.guesses > ahead + 1) {
        const int first = more.size();
        spans.push_back({first, 1, row.start + ahead + 1, row.blocks, row.rope_length, row.slot});
        places.push_back(static_cast<int32_t>(r));
        more.push_back(&row);
      }
    }
    if (more.empty()) {
      break;
    }
    rows = std::move(more);
    caches_->begin(std::move(spans));
    hidden = model_->hidden(mx::take(guesses, host_array(places), 0), *caches_);
  }
  // Rows lie in the plan in the order of their addresses.
  std::vector<int32_t> order(made.size());
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<int32_t>(i);
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return made[a] < made[b]; });
  out.ids = mx::take(mx::concatenate(passes, 0), host_array(order), 0);
  return out;
}

} // namespace parallm

// Cosine similarity, and the order of hits that every backend answers in. Free functions, any thread.
#pragma once

#include "memory/store.h"

#include <algorithm>
#include <span>
#include <tuple>
#include <vector>

namespace parallm {

/** -1..1. Both of one length, neither null. */
float cosine(std::span<const float> a, std::span<const float> b);

/** The vector of length 1 in its direction. */
std::vector<float> unit(std::span<const float> vector);

/** Puts what has a `similarity`, and a Document by `document_of`, into the order of Selection::hits and cuts it to the
 * first `top`; 0: all. */
template <typename Found, typename DocumentOf>
void order_hits(std::vector<Found>& found, size_t top, const DocumentOf& document_of) {
  const size_t kept = top > 0 ? std::min(top, found.size()) : found.size();
  const auto middle = found.begin() + static_cast<std::ptrdiff_t>(kept);
  std::partial_sort(found.begin(), middle, found.end(), [&](const Found& a, const Found& b) {
    const Document &x = document_of(a), &y = document_of(b);
    return a.similarity != b.similarity ? a.similarity > b.similarity
                                        : std::tie(x.space, x.id) < std::tie(y.space, y.id);
  });
  found.erase(middle, found.end());
}

inline void order_hits(std::vector<Hit>& hits, const Selector& selector) {
  order_hits(hits, selector.top, [](const Hit& hit) -> const Document& { return hit.document; });
}

} // namespace parallm

// Cosine similarity, and the order of hits that every backend answers in. Free functions, any thread.
#pragma once

#include "memory/store.h"

#include <span>
#include <vector>

namespace parallm {

/** -1..1. Both of one length, neither null. */
float cosine(std::span<const float> a, std::span<const float> b);

/** The vector of length 1 in its direction. */
std::vector<float> unit(std::span<const float> vector);

/** Puts hits into the order of Selection::hits and cuts them to Selector::top. */
void order_hits(std::vector<Hit>& hits, const Selector& selector);

} // namespace parallm

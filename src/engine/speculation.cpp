#include "engine/speculation.h"

#include <algorithm>
#include <cmath>

namespace parallm {

Lookup look_up(std::span<const int32_t> tokens, int most) {
  Lookup found;
  const int size = static_cast<int>(tokens.size());
  if (size <= shortest_match || most <= 0) {
    return found;
  }
  const int32_t last = tokens[size - 1];
  int begin = 0; // of the guesses
  for (int end = size - 2; end >= shortest_match - 1 && found.matched < longest_match; --end) {
    if (tokens[end] != last || tokens[end - 1] != tokens[size - 2]) {
      continue;
    }
    int matched = shortest_match;
    while (matched < longest_match && matched <= end && tokens[end - matched] == tokens[size - 1 - matched]) {
      ++matched;
    }
    if (matched > found.matched) {
      found.matched = matched;
      begin = end + 1;
    }
  }
  if (found.matched > 0) {
    // A match that runs into the end repeats itself: so do its guesses.
    const int period = size - begin;
    for (int i = 0; i < most; ++i) {
      found.guesses.push_back(tokens[begin + i % period]);
    }
  }
  return found;
}

void Confidence::learn(int reason, int made, int right) {
  constexpr double weight = 0.05; // of the latest guess
  double& value = values_[reason];
  for (int i = 0; i < std::min(right + 1, made); ++i) {
    value += weight * ((i < right ? 1.0 : 0.0) - value);
  }
}

void StepCost::learn(int tokens, int passes, double seconds) {
  if (seconds <= 0) {
    return;
  }
  // A step that met a compiler or a busy machine says little.
  if (with_seconds_[0] > 0) {
    seconds = std::min(seconds, 3 * of(tokens, passes));
  }
  constexpr double kept = 0.98;
  const double x[3] = {1, double(tokens), double(passes)};
  for (int i = 0, at = 0; i < 3; ++i) {
    for (int j = i; j < 3; ++j, ++at) {
      products_[at] = kept * products_[at] + x[i] * x[j];
    }
    with_seconds_[i] = kept * with_seconds_[i] + x[i] * seconds;
  }
  // Least squares, drawn a little towards what holds of most machines: a token
  // costs a 20th of a step, a pass a 10th. Without it one kind of step alone
  // would leave the rest unknown.
  const double step = with_seconds_[0] / products_[0];
  const double pull = 1e-3 * products_[0];
  double m[3][4] = {
      {products_[0], products_[1], products_[2], with_seconds_[0]},
      {products_[1], products_[3] + pull, products_[4], with_seconds_[1] + pull * 0.05 * step},
      {products_[2], products_[4], products_[5] + pull, with_seconds_[2] + pull * 0.1 * step}};
  for (int i = 0; i < 3; ++i) { // symmetric and positive: no pivoting
    for (int r = i + 1; r < 3; ++r) {
      const double times = m[r][i] / m[i][i];
      for (int c = i; c < 4; ++c) {
        m[r][c] -= times * m[i][c];
      }
    }
  }
  for (int i = 2; i >= 0; --i) {
    double sum = m[i][3];
    for (int j = i + 1; j < 3; ++j) {
      sum -= m[i][j] * fit_[j];
    }
    fit_[i] = sum / m[i][i];
  }
}

double StepCost::of(int tokens, int passes) const {
  // Noise must not make work free.
  const double b = std::max(fit_[1], 0.0), c = std::max(fit_[2], 0.0);
  return std::max(fit_[0], 1e-9) + b * tokens + c * passes;
}

int best_guesses(int rows, std::span<const Prospect> prospects, bool draft_model, const StepCost& cost) {
  int most = 0;
  for (const Prospect& prospect : prospects) {
    most = std::max(most, prospect.most);
  }
  int best = 0, tokens = rows;
  double gain = rows, best_rate = gain / cost.of(tokens, 0);
  for (int guess = 1; guess <= most; ++guess) {
    for (const Prospect& prospect : prospects) {
      if (guess <= prospect.most) {
        ++tokens;
        gain += std::pow(prospect.confidence, guess);
      }
    }
    const double rate = gain / cost.of(tokens, draft_model ? guess : 0);
    if (rate > best_rate) {
      best_rate = rate;
      best = guess;
    }
  }
  return best;
}

} // namespace parallm

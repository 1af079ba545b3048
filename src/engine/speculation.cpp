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
  double& value = values_[reason];
  for (int i = 0; i < std::min(right + 1, made); ++i) {
    const double weight = std::max(0.05, 1.0 / (4 + judged_[reason]++));
    value += weight * ((i < right ? 1.0 : 0.0) - value);
  }
}

void Confidence::drift(int reason) {
  values_[reason] += 0.002 * (usual[reason] - values_[reason]);
}

namespace {

std::array<double, 4> terms_of(const StepShape& shape) {
  return {1, double(shape.tokens), double(shape.passes), double(shape.waited)};
}

} // namespace

void StepCost::learn(const StepShape& shape, double seconds) {
  if (seconds <= 0) {
    return;
  }
  if (with_seconds_[0] > 0) {
    seconds = std::min(seconds, 3 * of(shape)); // one that met a compiler or a busy machine says little
  } else {
    const double unit = seconds / of(shape);
    std::transform(fit_.begin(), fit_.end(), fit_.begin(), [&](double x) { return unit * x; });
  }
  constexpr double kept = 0.98;
  const auto x = terms_of(shape);
  for (int i = 0; i < terms; ++i) {
    for (int j = 0; j < terms; ++j) {
      products_[i][j] = kept * products_[i][j] + x[i] * x[j];
    }
    with_seconds_[i] = kept * with_seconds_[i] + x[i] * seconds;
  }
  // Least squares, drawn a little towards what was known before: steps of one
  // kind alone say nothing of the rest.
  const double pull = 1e-2 * products_[0][0];
  auto m = products_;
  auto y = with_seconds_;
  for (int i = 1; i < terms; ++i) {
    m[i][i] += pull;
    y[i] += pull * fit_[i];
  }
  for (int i = 0; i < terms; ++i) { // symmetric and positive: no pivoting
    for (int r = i + 1; r < terms; ++r) {
      const double times = m[r][i] / m[i][i];
      for (int c = i; c < terms; ++c) {
        m[r][c] -= times * m[i][c];
      }
      y[r] -= times * y[i];
    }
  }
  for (int i = terms - 1; i >= 0; --i) {
    double sum = y[i];
    for (int j = i + 1; j < terms; ++j) {
      sum -= m[i][j] * fit_[j];
    }
    fit_[i] = sum / m[i][i];
  }
}

double StepCost::of(const StepShape& shape) const {
  const auto x = terms_of(shape);
  double seconds = std::max(fit_[0], 1e-9);
  for (int i = 1; i < terms; ++i) {
    seconds += x[i] * std::max(fit_[i], 0.0); // noise must not make work free
  }
  return seconds;
}

int best_guesses(const StepShape& plain, std::span<const Prospect> prospects, bool draft_model, const StepCost& cost) {
  int most = 0;
  for (const Prospect& prospect : prospects) {
    most = std::max(most, prospect.most);
  }
  StepShape shape{plain.tokens, 0, true};
  int best = 0;
  double gain = plain.tokens, best_rate = gain / cost.of(plain);
  for (int guess = 1; guess <= most; ++guess) {
    for (const Prospect& prospect : prospects) {
      if (guess <= prospect.most) {
        ++shape.tokens;
        gain += std::pow(prospect.confidence, guess);
      }
    }
    shape.passes = draft_model ? guess : 0;
    const double rate = gain / cost.of(shape);
    if (rate > best_rate) {
      best_rate = rate;
      best = guess;
    }
  }
  return best;
}

} // namespace parallm

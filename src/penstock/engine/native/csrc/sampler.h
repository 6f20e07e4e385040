// One token from one row of logits: greedy, or by inverse transform through temperature, top-k, top-p, min-p.
// The same distribution, in the same order, as engine/sampler.py draws from.
#pragma once

#include <cstdint>

namespace penstock {

struct Sampling {
  double temperature;  // below kGreedyBelow: the likeliest token
  int32_t top_k;      // 0: all
  double top_p, min_p;
  double uniform;  // in [0, 1): where on the distribution's staircase
};

constexpr double kGreedyBelow = 1e-5;

// The token, or -1 if the row holds no distribution (NaN, or nothing finite above it).
int32_t sample(const float* logits, int64_t size, const Sampling& sampling);

// The same among the tokens whose bit in `allowed` is 1; token t is bit t % 32 of word t / 32. May change the logits.
int32_t sample_allowed(float* logits, int64_t size, const int32_t* allowed, const Sampling& sampling);

}  // namespace penstock

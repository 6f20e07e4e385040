#include "sampler.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <vector>

#include "simd.h"

namespace penstock {
namespace {

// Before any token is sorted, all are counted by steps below the likeliest: step s holds weights in
// (e^(-(s + 1) / 16), e^(-s / 16)] of its. Only steps that may stay are sorted. What is lighter than all steps, e^-64,
// is counted as one more and left out: a uniform number has 53 bits, too few to ever fall on it.
constexpr int kSteps = 1024;
constexpr double kStepsPerNat = 16.0;
constexpr int64_t kBlock = 1024;

// Where a grammar allows at most one token of so many, those are drawn from apart.
constexpr int64_t kFewOf = 8;

struct Candidate {
  float logit;
  int32_t token;
};

// The first token of the largest logit; NaN is larger than everything.
int32_t likeliest(const float* logits, int64_t size, float& largest) {
  __m512 top = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __mmask16 broken = 0;
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 lanes = first_lanes(size - i);
    const __m512 v = _mm512_mask_loadu_ps(top, lanes, logits + i);
    broken |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    top = _mm512_max_ps(top, v);
  }
  largest = broken ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(top);
  if (!std::isfinite(largest)) return -1;
  const __m512 wanted = _mm512_set1_ps(largest);
  for (int64_t i = 0; i < size; i += kLanes) {
    const __mmask16 lanes = first_lanes(size - i);
    const __mmask16 at = _mm512_mask_cmp_ps_mask(lanes, _mm512_maskz_loadu_ps(lanes, logits + i), wanted, _CMP_EQ_OQ);
    if (at) return static_cast<int32_t>(i + __builtin_ctz(at));
  }
  return -1;
}

// exp((logit - largest) / temperature), in double where it is added up.
double weight_of(float logit, float largest, double temperature) {
  return std::exp((static_cast<double>(logit) - largest) / temperature);
}

// Sums of weights, relative to the likeliest, of kBlock tokens each.
void sum_blocks(const float* logits, int64_t size, float largest, double temperature, std::vector<double>& blocks) {
  blocks.assign(ceil_div(size, kBlock), 0.0);
  const __m512 top = _mm512_set1_ps(largest), inverse = _mm512_set1_ps(static_cast<float>(1.0 / temperature));
  for (int64_t b = 0; b < static_cast<int64_t>(blocks.size()); ++b) {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    const int64_t end = std::min(size, (b + 1) * kBlock);
    for (int64_t i = b * kBlock; i < end; i += kLanes) {
      const __mmask16 lanes = first_lanes(end - i);
      const __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, logits + i), top), inverse);
      const __m512 w = _mm512_maskz_mov_ps(lanes, exp(v));
      low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(w)));
      high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(w, 1)));
    }
    blocks[b] = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  }
}

// Without filters the staircase follows the vocabulary: block by block, then one block token by token.
int32_t draw_plain(const float* logits, int64_t size, float largest, const Sampling& sampling) {
  thread_local std::vector<double> blocks;
  sum_blocks(logits, size, largest, sampling.temperature, blocks);
  const double target = sampling.uniform * std::accumulate(blocks.begin(), blocks.end(), 0.0);
  int64_t last = static_cast<int64_t>(blocks.size()) - 1, block = 0;
  while (blocks[last] <= 0.0) --last;  // the likeliest token's block has weight
  double passed = 0.0;
  while (block < last && passed + blocks[block] <= target) passed += blocks[block++];
  int64_t chosen = -1;
  for (int64_t i = block * kBlock; i < std::min(size, (block + 1) * kBlock); ++i) {
    const double weight = weight_of(logits[i], largest, sampling.temperature);
    if (weight <= 0.0) continue;
    chosen = i;  // rounding may reach past the last step of the staircase
    passed += weight;
    if (passed > target) break;
  }
  return static_cast<int32_t>(chosen);
}

// The step of every token, and how many tokens each step holds.
void count_steps(const float* logits, int64_t size, float largest, double temperature, std::vector<int32_t>& steps,
                 std::array<int64_t, kSteps + 1>& count) {
  steps.resize(round_up(size, kLanes));
  const __m512 top = _mm512_set1_ps(largest), last = _mm512_set1_ps(kSteps);
  const __m512 factor = _mm512_set1_ps(static_cast<float>(kStepsPerNat / temperature));
  for (int64_t i = 0; i < size; i += kLanes) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(size - i), logits + i);
    // The order of the operands of min takes NaN, as of infinity times a factor of 0, for the last step.
    const __m512 below = _mm512_min_ps(_mm512_mul_ps(_mm512_sub_ps(top, v), factor), last);
    _mm512_storeu_si512(steps.data() + i, _mm512_cvttps_epi32(below));
  }
  // Four tables: neighbours often share a step, and adding to a count waits for the addition before it.
  thread_local std::array<std::array<int32_t, kSteps + 1>, 4> tables;
  for (auto& table : tables) table.fill(0);
  int64_t i = 0;
  for (; i + 4 <= size; i += 4) {
    for (int64_t t = 0; t < 4; ++t) ++tables[t][steps[i + t]];
  }
  for (; i < size; ++i) ++tables[0][steps[i]];
  for (int s = 0; s <= kSteps; ++s) count[s] = int64_t{tables[0][s]} + tables[1][s] + tables[2][s] + tables[3][s];
}

// The tokens of one row that its filters may keep, by steps: likelier steps first, unsorted within a step.
struct Candidates {
  std::vector<Candidate> all;
  std::vector<int64_t> ends;  // of each step in `all`
  std::vector<double> mass;   // of each step

  int64_t start(size_t step) const { return step ? ends[step - 1] : 0; }
  // Sorts a step, likeliest first, equals in the order of the vocabulary.
  void sort(size_t step) {
    std::sort(all.begin() + start(step), all.begin() + ends[step], [](const Candidate& a, const Candidate& b) {
      return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
    });
  }
};

// How many steps may hold tokens that stay.
int steps_needed(const std::array<int64_t, kSteps + 1>& count, double total, const Sampling& sampling) {
  // With top-k, top-p is a share of what top-k keeps, and the whole mass is no bound for it.
  const double enough = sampling.top_k ? std::numeric_limits<double>::infinity() : sampling.top_p * total;
  double least_mass = 0.0;
  int64_t held = 0;
  for (int s = 0; s < kSteps; ++s) {
    const double lightest = std::exp(-(s + 1) / kStepsPerNat);
    least_mass += static_cast<double>(count[s]) * lightest;
    held += count[s];
    if ((sampling.top_k && held >= sampling.top_k) || least_mass > enough || lightest < sampling.min_p) return s + 1;
  }
  return kSteps;
}

void collect(const float* logits, int64_t size, float largest, double total, const Sampling& sampling,
             Candidates& found) {
  thread_local std::vector<int32_t> steps;
  thread_local std::array<int64_t, kSteps + 1> count, next;
  count_steps(logits, size, largest, sampling.temperature, steps, count);
  const int needed = steps_needed(count, total, sampling);
  found.ends.assign(needed, 0);
  found.mass.assign(needed, 0.0);
  std::partial_sum(count.begin(), count.begin() + needed, found.ends.begin());
  for (int s = 0; s < needed; ++s) next[s] = found.start(s);
  found.all.resize(found.ends.back());
  const __m512i bound = _mm512_set1_epi32(needed);
  for (int64_t i = 0; i < size; i += kLanes) {
    unsigned kept = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(steps.data() + i), bound) & first_lanes(size - i);
    for (; kept; kept &= kept - 1) {
      const int64_t token = i + __builtin_ctz(kept);
      found.all[next[steps[token]]++] = {logits[token], static_cast<int32_t>(token)};
      found.mass[steps[token]] += std::exp((logits[token] - largest) / static_cast<float>(sampling.temperature));
    }
  }
  if (sampling.top_k && found.ends.back() > sampling.top_k) {  // the last step alone reaches beyond
    const size_t last = found.ends.size() - 1;
    found.sort(last);
    found.all.resize(sampling.top_k);
    found.ends[last] = sampling.top_k;
    found.mass[last] = 0.0;
    for (int64_t i = found.start(last); i < found.ends[last]; ++i) {
      found.mass[last] += weight_of(found.all[i].logit, largest, sampling.temperature);
    }
  }
}

// Cuts the candidates off where top-p or min-p says; returns the mass that stays.
double cut(Candidates& found, float largest, double total, const Sampling& sampling) {
  const double enough = sampling.top_p * total;
  double reached = 0.0;
  for (size_t step = 0; step < found.ends.size(); ++step) {
    const double lightest = std::exp(-static_cast<double>(step + 1) / kStepsPerNat);
    // Clearly inside: nothing to decide token by token.
    if (step > 0 && reached + found.mass[step] < enough * (1 - 1e-6) && lightest > sampling.min_p * (1 + 1e-6)) {
      reached += found.mass[step];
      continue;
    }
    found.sort(step);
    const double before = reached;
    for (int64_t i = found.start(step); i < found.ends[step]; ++i) {
      const double weight = weight_of(found.all[i].logit, largest, sampling.temperature);
      // The likeliest token always stays, also with top_p 0.
      if (i > 0 && (reached >= enough || weight < sampling.min_p || weight <= 0.0)) {
        found.ends[step] = i;
        found.mass[step] = reached - before;
        found.ends.resize(step + 1);
        return reached;
      }
      reached += weight;
    }
    found.mass[step] = reached - before;
  }
  return reached;
}

int32_t draw_filtered(const float* logits, int64_t size, float largest, const Sampling& sampling) {
  thread_local std::vector<double> blocks;
  thread_local Candidates found;
  sum_blocks(logits, size, largest, sampling.temperature, blocks);
  double total = std::accumulate(blocks.begin(), blocks.end(), 0.0);
  collect(logits, size, largest, total, sampling, found);
  if (sampling.top_k) total = std::accumulate(found.mass.begin(), found.mass.end(), 0.0);
  const double target = sampling.uniform * cut(found, largest, total, sampling);
  size_t step = 0, last = found.ends.size() - 1;
  while (last > 0 && found.ends[last] == found.start(last)) --last;
  double passed = 0.0;
  while (step < last && passed + found.mass[step] <= target) passed += found.mass[step++];
  found.sort(step);
  int32_t token = -1;
  for (int64_t i = found.start(step); i < found.ends[step]; ++i) {
    token = found.all[i].token;  // rounding may reach past the last step of the staircase
    passed += weight_of(found.all[i].logit, largest, sampling.temperature);
    if (passed > target) break;
  }
  return token;
}

// Sets the logits of tokens whose bit in `allowed` is 0 to minus infinity.
void forbid(float* logits, int64_t size, const int32_t* allowed) {
  const __m512 never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < size; i += 2 * kLanes) {
    const uint32_t bits = ~static_cast<uint32_t>(allowed[i / 32]);
    if (bits == 0) continue;
    const auto low = static_cast<__mmask16>(bits), high = static_cast<__mmask16>(bits >> kLanes);
    _mm512_mask_storeu_ps(logits + i, low & first_lanes(size - i), never);
    _mm512_mask_storeu_ps(logits + i + kLanes, high & first_lanes(std::max<int64_t>(size - i - kLanes, 0)), never);
  }
}

}  // namespace

int32_t sample(const float* logits, int64_t size, const Sampling& sampling) {
  float largest;
  const int32_t token = likeliest(logits, size, largest);
  if (token < 0 || sampling.temperature < kGreedyBelow) return token;
  const bool is_filtered = sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
  return is_filtered ? draw_filtered(logits, size, largest, sampling) : draw_plain(logits, size, largest, sampling);
}

int32_t sample_allowed(float* logits, int64_t size, const int32_t* allowed, const Sampling& sampling) {
  thread_local std::vector<float> kept;
  thread_local std::vector<int32_t> tokens;
  const int64_t few = size / kFewOf;
  int64_t count = 0;
  for (int64_t word = 0; word < ceil_div(size, 32) && count <= few; ++word) count += __builtin_popcount(allowed[word]);
  if (count > few) {
    forbid(logits, size, allowed);
    return sample(logits, size, sampling);
  }
  kept.clear();
  tokens.clear();
  for (int64_t first = 0; first < size; first += 32) {
    for (auto bits = static_cast<uint32_t>(allowed[first / 32]); bits; bits &= bits - 1) {
      const int64_t token = first + __builtin_ctz(bits);
      if (token >= size) break;
      kept.push_back(logits[token]);
      tokens.push_back(static_cast<int32_t>(token));
    }
  }
  const int32_t at = sample(kept.data(), static_cast<int64_t>(kept.size()), sampling);
  return at < 0 ? at : tokens[at];
}

}  // namespace penstock

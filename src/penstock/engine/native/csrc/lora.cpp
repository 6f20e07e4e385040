#include "lora.h"

#include <algorithm>
#include <stdexcept>

#include "linear.h"

namespace penstock {

LowRank::LowRank(int64_t outputs, int64_t inputs, int64_t rank, const float* a, const float* b)
    : outputs(outputs), inputs(inputs), rank(rank) {
  if (outputs < 1 || inputs < 1 || rank < 1) throw std::invalid_argument("an adapter's matrices may not be empty");
  a_.reset(rank_strips() * inputs * kLanes);
  for (int64_t r = 0; r < rank; ++r) {
    float* to = a_.data() + r / kLanes * inputs * kLanes + r % kLanes;
    for (int64_t j = 0; j < inputs; ++j) to[j * kLanes] = a[r * inputs + j];
  }
  // As many strips as the weight has, which are whole panels.
  strips_.resize(ceil_div(outputs, kPanel) * (kPanel / kLanes));
  int64_t size = 0;
  for (size_t s = 0; s < strips_.size(); ++s) {
    int64_t first = rank, end = 0;
    for (int64_t i = s * kLanes; i < std::min<int64_t>((s + 1) * kLanes, outputs); ++i) {
      for (int64_t r = 0; r < rank; ++r) {
        if (b[i * rank + r] == 0.0f) continue;
        first = std::min(first, r);
        end = std::max(end, r + 1);
      }
    }
    strips_[s] = {first, std::max<int64_t>(end - first, 0), size};
    size += strips_[s].count * kLanes;
  }
  b_.reset(size);
  for (int64_t i = 0; i < outputs; ++i) {
    const Strip& strip = strips_[i / kLanes];
    for (int64_t r = 0; r < strip.count; ++r) {
      b_.data()[strip.at + r * kLanes + i % kLanes] = b[i * rank + strip.first + r];
    }
  }
}

void LowRank::reduce(int64_t s, int count, const float* const* rows, const float* norm, const float* rms,
                     float* inner, int64_t stride) const {
  switch (count) {
    case 1: return reduce_rows<1>(s, rows, norm, rms, inner, stride);
    case 2: return reduce_rows<2>(s, rows, norm, rms, inner, stride);
    case 3: return reduce_rows<3>(s, rows, norm, rms, inner, stride);
    default: return reduce_rows<kRows>(s, rows, norm, rms, inner, stride);
  }
}

// The order of a row's sums is the same for every R, so that its bits are.
template <int R>
void LowRank::reduce_rows(int64_t s, const float* const* rows, const float* norm, const float* rms, float* inner,
                          int64_t stride) const {
  const float* a = a_.data() + s * inputs * kLanes;
  __m512 sums[R][4];
#pragma GCC unroll 4
  for (auto& row : sums) row[0] = row[1] = row[2] = row[3] = _mm512_setzero_ps();
  alignas(64) float values[R][kLanes];
  for (int64_t j = 0; j < inputs; j += kLanes) {
    const __mmask16 lanes = first_lanes(inputs - j);
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      __m512 v = _mm512_maskz_loadu_ps(lanes, rows[i] + j);
      if (norm) v = _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(rms[i])), _mm512_maskz_loadu_ps(lanes, norm + j));
      _mm512_store_ps(values[i], v);  // 0 beyond the end
    }
    const int64_t count = std::min<int64_t>(kLanes, inputs - j);
    for (int64_t u = 0; u < count; u += 4) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < 4; ++v) {
        if (u + v >= count) break;
        const __m512 weights = _mm512_load_ps(a + v * kLanes);
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) sums[i][v] = _mm512_fmadd_ps(weights, _mm512_set1_ps(values[i][u + v]), sums[i][v]);
      }
      a += 4 * kLanes;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[i][0], sums[i][1]), _mm512_add_ps(sums[i][2], sums[i][3]));
    _mm512_store_ps(inner + i * stride, sum);
  }
}

void LowRank::expand(int64_t s, int count, const float* inner, int64_t stride, float* y) const {
  const Strip& strip = strips_[s];
  if (strip.count == 0) return;
  inner += strip.first;
  switch (count) {
    case 1: return expand_rows<1>(strip, inner, stride, y);
    case 2: return expand_rows<2>(strip, inner, stride, y);
    case 3: return expand_rows<3>(strip, inner, stride, y);
    default: return expand_rows<kRows>(strip, inner, stride, y);
  }
}

template <int R>
void LowRank::expand_rows(const Strip& strip, const float* inner, int64_t stride, float* y) const {
  const float* b = b_.data() + strip.at;
  __m512 sums[R][2];
#pragma GCC unroll 4
  for (auto& row : sums) row[0] = row[1] = _mm512_setzero_ps();
  int64_t r = 0;
  for (; r + 2 <= strip.count; r += 2, b += 2 * kLanes) {
    const __m512 even = _mm512_load_ps(b), odd = _mm512_load_ps(b + kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      sums[i][0] = _mm512_fmadd_ps(even, _mm512_set1_ps(inner[i * stride + r]), sums[i][0]);
      sums[i][1] = _mm512_fmadd_ps(odd, _mm512_set1_ps(inner[i * stride + r + 1]), sums[i][1]);
    }
  }
  if (r < strip.count) {
    const __m512 last = _mm512_load_ps(b);
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) sums[i][0] = _mm512_fmadd_ps(last, _mm512_set1_ps(inner[i * stride + r]), sums[i][0]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
    float* to = y + i * kPanel;
    _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_add_ps(sums[i][0], sums[i][1])));
  }
}

int64_t Adapter::bytes() const {
  int64_t bytes = 0;
  for (const Layer& layer : layers) {
    for (const auto& low_rank : {layer.qkv, layer.output, layer.gate_up, layer.down}) {
      bytes += low_rank ? low_rank->bytes() : 0;
    }
  }
  return bytes;
}

void Adaptation::begin(const Batch& batch, const std::vector<const Adapter*>& adapters) {
  adapted_.clear();
  for (int64_t s = 0; s < batch.sequences; ++s) {
    if (adapters[s] == nullptr) continue;
    for (int64_t row = batch.query_starts[s]; row < batch.query_starts[s + 1]; ++row) {
      adapted_.push_back({row, adapters[s]});
    }
  }
  if (!adapted_.empty()) selected_.assign(batch.tokens, nullptr);
}

int64_t Adaptation::select(int64_t index, std::shared_ptr<LowRank> Adapter::Layer::*product) {
  strips_ = 0;
  for (const Row& row : adapted_) {
    const LowRank* low_rank = (row.adapter->layers[index].*product).get();
    selected_[row.row] = low_rank;
    if (low_rank != nullptr) strips_ = std::max(strips_, low_rank->rank_strips());
  }
  if (strips_ == 0) return 0;
  groups_.clear();
  const auto rows = static_cast<int64_t>(selected_.size());
  for (int64_t row = 0; row < rows;) {
    const int count = alike(row, rows);
    if (selected_[row] != nullptr) groups_.push_back({row, count});
    row += count;
  }
  inner_.reserve(static_cast<int64_t>(selected_.size()) * strips_ * kLanes);
  return static_cast<int64_t>(groups_.size()) * strips_;
}

int Adaptation::alike(int64_t row, int64_t end) const {
  int count = 1;
  while (count < LowRank::kRows && row + count < end && selected_[row + count] == selected_[row]) ++count;
  return count;
}

void Adaptation::add(int64_t panel, int64_t start, int count, float* tile) const {
  for (int64_t row = start; row < start + count;) {
    const int together = alike(row, start + count);
    if (const LowRank* low_rank = selected_[row]) {
      const float* from = inner_.data() + row * stride();
      float* y = tile + (row - start) * kPanel;
      low_rank->expand(2 * panel, together, from, stride(), y);
      low_rank->expand(2 * panel + 1, together, from, stride(), y + kLanes);
    }
    row += together;
  }
}

}  // namespace penstock

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

void LowRank::reduce(int64_t s, const float* x, const float* norm, float rms, float* inner) const {
  const float* a = a_.data() + s * inputs * kLanes;
  const __m512 scale = _mm512_set1_ps(rms);
  __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
  alignas(64) float values[kLanes];
  for (int64_t j = 0; j < inputs; j += kLanes) {
    const __mmask16 lanes = first_lanes(inputs - j);
    __m512 v = _mm512_maskz_loadu_ps(lanes, x + j);
    if (norm) v = _mm512_mul_ps(_mm512_mul_ps(v, scale), _mm512_maskz_loadu_ps(lanes, norm + j));
    _mm512_store_ps(values, v);
    const int64_t count = std::min<int64_t>(kLanes, inputs - j);
    for (int64_t i = 0; i < count; ++i, a += kLanes) {
      sums[i & 3] = _mm512_fmadd_ps(_mm512_load_ps(a), _mm512_set1_ps(values[i]), sums[i & 3]);
    }
  }
  _mm512_store_ps(inner, _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
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

bool Adaptation::select(int64_t index, std::shared_ptr<LowRank> Adapter::Layer::*product) {
  strips_ = 0;
  for (const Row& row : adapted_) {
    const LowRank* low_rank = (row.adapter->layers[index].*product).get();
    selected_[row.row] = low_rank;
    if (low_rank != nullptr) strips_ = std::max(strips_, low_rank->rank_strips());
  }
  if (strips_ == 0) return false;
  inner_.reserve(static_cast<int64_t>(selected_.size()) * strips_ * kLanes);
  return true;
}

}  // namespace penstock

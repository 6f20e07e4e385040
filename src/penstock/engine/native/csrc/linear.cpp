#include "linear.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "lora.h"

namespace penstock {
namespace {

constexpr int64_t kLongestChunk = 128;  // rows times panels

}  // namespace

void Activations::shape(int64_t rows, int64_t size, Form form) {
  rows_ = rows;
  size_ = size;
  stride_ = round_up(size, 64);
  if (form == Form::kFloat) {
    values_.reserve(rows * stride_);
    return;
  }
  quads_.reserve(rows * stride_ / 4);
  scales_.reserve(rows);
  sums_.reserve(rows);
  group_sums_.reserve(rows * (stride_ / kGroup));
}

void Activations::set_float(int64_t i, const float* x, const float* norm, float eps) {
  const int64_t t = tile_of(i), height = tile_height(t);
  const float rms = norm ? inverse_rms(x, size_, eps) : 1.0f;
  float* out = values_.data() + tile_start(t) * stride_ + (i - tile_start(t));
  for (int64_t j = 0; j < size_; ++j) out[j * height] = norm ? x[j] * rms * norm[j] : x[j];
}

void Activations::set_codes(int64_t i, const float* x, const float* norm, float eps) {
  const int64_t t = tile_of(i), height = tile_height(t);
  const __m512 rms = _mm512_set1_ps(norm ? inverse_rms(x, size_, eps) : 1.0f);
  const auto load_at = [&](int64_t j) {
    const __mmask16 lanes = first_lanes(std::max<int64_t>(size_ - j, 0));
    const __m512 v = _mm512_maskz_loadu_ps(lanes, x + j);
    return norm ? _mm512_mul_ps(_mm512_mul_ps(v, rms), _mm512_maskz_loadu_ps(lanes, norm + j)) : v;
  };
  const Int8Scale scale(largest_magnitude(size_, load_at));
  int32_t* quads = quads_.data() + tile_start(t) * stride_ / 4 + (i - tile_start(t));
  int32_t* sums = group_sums_.data() + i * (stride_ / kGroup);
  int32_t total = 0;
  for (int64_t group = 0; group < stride_ / kGroup; ++group) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t j = group * kGroup; j < (group + 1) * kGroup; j += kLanes) {
      const __m512i code = scale.codes(load_at(j));
      alignas(16) int32_t four[4];
      _mm_store_si128(reinterpret_cast<__m128i*>(four), _mm512_cvtsepi32_epi8(code));
      for (int64_t q = 0; q < 4; ++q) quads[(j / 4 + q) * height] = four[q];
      sum = _mm512_add_epi32(sum, code);
    }
    sums[group] = _mm512_reduce_add_epi32(sum);
    total += sums[group];
  }
  scales_.data()[i] = scale.step;
  sums_.data()[i] = total;
}

Weight::Weight(int64_t n, int64_t k) : n(n), k(k), bias_(round_up(n, kPanel)) {
  if (n < 1 || k < 1) throw std::invalid_argument("a weight needs at least one row and one column");
}

void Weight::pack(Pool& pool, int64_t start, int64_t count, const float* rows) {
  std::atomic<bool> is_sound{true};
  pool.run(ceil_div(count, kPanel), [&](int64_t chunk) {
    for (int64_t i = chunk * kPanel; i < std::min((chunk + 1) * kPanel, count); ++i) {
      if (!pack_row(start + i, rows + i * k)) is_sound = false;
    }
  });
  if (!is_sound) throw std::invalid_argument("a value is not finite, or too large for the format");
}

void Weight::set_bias(const float* bias) {
  std::copy(bias, bias + n, bias_.data());
  has_bias_ = true;
}

void Weight::product(Pool& pool, const Activations& from, float* out, int64_t out_stride, Into into,
                     const Adaptation* adaptation) const {
  const int64_t rows = from.rows();
  if (rows == 0) return;
  // A thread reads long runs of weights, or the cores' prefetchers fetch each other's panels (lab log); but with
  // many rows a panel takes long, and the last chunk should not be waited for.
  const int64_t fair = std::max<int64_t>(1, panels() / (4 * pool.threads()));
  const int64_t grain = std::min(fair, std::max<int64_t>(1, kLongestChunk / rows));
  pool.run(ceil_div(panels(), grain), [&](int64_t chunk) {
    alignas(64) float tile_out[kTileRows * kPanel];
    for (int64_t panel = chunk * grain; panel < std::min((chunk + 1) * grain, panels()); ++panel) {
      for (int64_t t = 0; t < from.tiles(); ++t) {
        tile(panel, from, t, tile_out);
        if (adaptation) adaptation->add(panel, from.tile_start(t), from.tile_height(t), tile_out);
        finish(panel, tile_out, from.tile_height(t), out + from.tile_start(t) * out_stride, out_stride, into);
      }
    }
  });
}

void Weight::finish(int64_t panel, float* tile, int count, float* out, int64_t out_stride, Into into) const {
  const int64_t column = panel * kPanel;
  const __mmask16 first = first_lanes(n - column);
  const __mmask16 second = first_lanes(std::max<int64_t>(n - column - kLanes, 0));
  const __m512 bias0 = load(bias_.data() + column), bias1 = load(bias_.data() + column + kLanes);
  for (int r = 0; r < count; ++r) {
    __m512 y0 = load(tile + r * kPanel), y1 = load(tile + r * kPanel + kLanes);
    if (has_bias_) {
      y0 = _mm512_add_ps(y0, bias0);
      y1 = _mm512_add_ps(y1, bias1);
    }
    float* to = out + r * out_stride;
    if (into == Into::kSiluMul) {
      const __mmask16 lanes = first_lanes(n / 2 - column / 2);
      _mm512_mask_storeu_ps(to + column / 2, lanes, _mm512_mul_ps(silu(y0), y1));
      continue;
    }
    if (into == Into::kAdd) {
      y0 = _mm512_add_ps(y0, _mm512_maskz_loadu_ps(first, to + column));
      y1 = _mm512_add_ps(y1, _mm512_maskz_loadu_ps(second, to + column + kLanes));
    }
    _mm512_mask_storeu_ps(to + column, first, y0);
    _mm512_mask_storeu_ps(to + column + kLanes, second, y1);
  }
}

}  // namespace penstock

// AVX-512 building blocks: loads of every element type as float32, sums, exp, and aligned memory.
#pragma once

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace penstock {

constexpr int kLanes = 16;  // float32 in a vector

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
inline int64_t ceil_div(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// Memory aligned to cache lines, zeroed, in huge pages where it is large: a step reads every weight once, and
// with small pages address translation costs as much as the reading.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { reset(size); }

  void reset(int64_t size) {
    constexpr int64_t kHuge = int64_t{2} << 20;
    const int64_t bytes = std::max<int64_t>(size, 1) * static_cast<int64_t>(sizeof(T));
    const int64_t unit = bytes >= 2 * kHuge ? kHuge : 64;
    data_.reset();  // first: what was there may be as large
    size_ = 0;
    void* memory = std::aligned_alloc(unit, round_up(bytes, unit));
    if (memory == nullptr) throw std::bad_alloc();
    // Whole pages only: the last one, half used, would be memory that no arithmetic at start counts.
    if (unit == kHuge) madvise(memory, bytes / kHuge * kHuge, MADV_HUGEPAGE);
    std::memset(memory, 0, bytes);
    data_.reset(static_cast<T*>(memory));
    size_ = size;
  }
  // Makes room for `size` elements; what was there may be lost.
  void reserve(int64_t size) {
    if (size > size_) reset(size);
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

struct bf16 {
  uint16_t bits;
};

inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? __mmask16(0xFFFF) : __mmask16((1u << count) - 1);
}

inline __m512 load(const float* at) { return _mm512_loadu_ps(at); }
inline __m512 load(const bf16* at) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline __m512 load(const int8_t* at) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}

// Round to nearest even, NaN kept.
inline bf16 to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}
inline float to_float(float value) { return value; }
inline float to_float(bf16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// exp(x) to about one unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes).
// Below -110 it is 0 in float32 anyhow; the order of the operands of max lets NaN through.
inline __m512 exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// x / (1 + exp(-x))
inline __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(x, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// The largest magnitude of `size` values, 16 of them from `load_at(j)`, 0 beyond the end. Compared as bits: NaN
// is larger than everything there and so is not lost.
template <class LoadAt>
float largest_magnitude(int64_t size, LoadAt&& load_at) {
  __m512i largest = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  for (int64_t j = 0; j < size; j += kLanes) {
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(load_at(j)), magnitude));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// How values become int8 codes, symmetric: code times step. Where a value is not finite, neither is the step, and
// all codes are 0: whatever they are multiplied with is lost. So small a row that 127 / absmax overflows is zeros.
struct Int8Scale {
  explicit Int8Scale(float absmax) : step(absmax / 127.0f), is_sound(std::isfinite(absmax)) {
    const float steps = 127.0f / absmax;
    inverse_ = _mm512_set1_ps(std::isfinite(steps) ? steps : 0.0f);
  }
  __m512i codes(__m512 values) const {
    return _mm512_maskz_cvtps_epi32(is_sound ? 0xFFFF : 0, _mm512_mul_ps(values, inverse_));
  }

  const float step;
  const bool is_sound;

 private:
  __m512 inverse_;
};

// The scale that norms a row: 1 / sqrt(mean of squares + eps).
inline float inverse_rms(const float* x, int64_t size, float eps) {
  __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0, lane = 0; i < size; i += kLanes, lane ^= 1) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(size - i), x + i);
    sums[lane] = _mm512_fmadd_ps(v, v, sums[lane]);
  }
  const float sum = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
  return 1.0f / std::sqrt(sum / static_cast<float>(size) + eps);
}

}  // namespace penstock

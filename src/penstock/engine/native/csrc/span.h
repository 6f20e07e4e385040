// Softmax attention of a few queries over one span of the context, the inner loops of attention.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "simd.h"

namespace penstock {

constexpr int64_t kSpan = 256;    // positions that go through one softmax
constexpr int kRowsAtOnce = 8;    // queries that share a load of keys or values
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Softmax over a part of the context, of one query: largest score, sum of weights, weighted sum of values.
struct Partial {
  float largest = kNothing, total = 0.0f;
  float* sums = nullptr;  // [padded head_dim]
};

// Adds the next span to what was before it.
inline void merge(Partial& into, const Partial& next, int64_t padded) {
  if (next.largest == kNothing) return;
  const bool is_first = into.largest == kNothing;
  const float largest = is_first ? next.largest : std::max(into.largest, next.largest);
  const __m512 old = exp(_mm512_set1_ps(is_first ? 0.0f : into.largest - largest));
  const __m512 fresh = exp(_mm512_set1_ps(next.largest - largest));
  for (int64_t i = 0; i < padded; i += kLanes) {
    const __m512 v = _mm512_mul_ps(load(next.sums + i), fresh);
    _mm512_storeu_ps(into.sums + i, is_first ? v : _mm512_fmadd_ps(load(into.sums + i), old, v));
  }
  const float weight = _mm512_cvtss_f32(fresh);
  into.total = is_first ? next.total * weight : into.total * _mm512_cvtss_f32(old) + next.total * weight;
  into.largest = largest;
}

// One span of one sequence's context for one key-value head, by columns of 16 positions.
template <class Element>
struct Span {
  static constexpr int kColumns = kSpan / kLanes;

  int64_t positions = 0;   // that hold something
  int64_t head_dim = 0, padded = 0, key_stride = 0;
  const Element* keys[kColumns];    // element i of column c: 16 positions at keys[c] + i * key_stride
  const Element* values[kColumns];  // position p of column c: at values[c] + p * padded
  const float* key_scales[kColumns];
  const float* value_scales[kColumns];

  int columns() const { return static_cast<int>((positions + kLanes - 1) / kLanes); }

  // scores[r][position] = query r times key, for `rows` <= kRowsAtOnce queries of `padded` floats each. What
  // lies beyond `positions` in the last column is undefined.
  void score(int rows, const float* queries, float* scores) const {
    by_rows(rows, [&](auto height) {
      int c = 0;
      for (; c + 2 <= columns(); c += 2) score_columns<height.value, 2>(c, queries, scores);
      if (c < columns()) score_columns<height.value, 1>(c, queries, scores);
    });
  }

  // Turns a row of scores into weights, 0 outside positions [low, high] of the span.
  Partial softmax(float* scores, int64_t low, int64_t high) const {
    __m512 largest = _mm512_set1_ps(kNothing);
    for (int c = 0; c < columns(); ++c) {
      const __mmask16 seen = seen_lanes(c, low, high);
      largest = _mm512_mask_max_ps(largest, seen, largest, load(scores + c * kLanes));
    }
    Partial out;
    out.largest = _mm512_reduce_max_ps(largest);
    const __m512 top = _mm512_set1_ps(out.largest);
    __m512 total = _mm512_setzero_ps();
    for (int c = 0; c < columns(); ++c) {
      float* at = scores + c * kLanes;
      const __m512 weights = _mm512_maskz_mov_ps(seen_lanes(c, low, high), exp(_mm512_sub_ps(load(at), top)));
      total = _mm512_add_ps(total, weights);
      const __mmask16 held = first_lanes(positions - c * kLanes);
      _mm512_storeu_ps(at, std::is_same_v<Element, int8_t>
                               ? _mm512_mul_ps(weights, _mm512_maskz_loadu_ps(held, value_scales[c]))
                               : weights);
    }
    out.total = _mm512_reduce_add_ps(total);
    return out;
  }

  // sums[r] = weights of row r times values, for `rows` <= kRowsAtOnce rows of weights, kSpan floats apart.
  void sum(int rows, const float* weights, float* sums) const {
    by_rows(rows, [&](auto height) {
      int64_t i = 0;
      for (; i + 2 * kLanes <= padded; i += 2 * kLanes) sum_vectors<height.value, 2>(i, weights, sums);
      if (i < padded) sum_vectors<height.value, 1>(i, weights, sums);
    });
  }

 private:
  template <class Body>
  static void by_rows(int rows, Body&& body) {
    switch (rows) {
#define PENSTOCK_ROWS(R) \
  case R:                \
    return body(std::integral_constant<int, R>{});
      PENSTOCK_ROWS(1) PENSTOCK_ROWS(2) PENSTOCK_ROWS(3) PENSTOCK_ROWS(4)
      PENSTOCK_ROWS(5) PENSTOCK_ROWS(6) PENSTOCK_ROWS(7) PENSTOCK_ROWS(8)
#undef PENSTOCK_ROWS
    }
  }

  static __mmask16 seen_lanes(int column, int64_t low, int64_t high) {
    const int64_t first = std::clamp<int64_t>(low - column * kLanes, 0, kLanes);
    const int64_t end = std::clamp<int64_t>(high + 1 - column * kLanes, 0, kLanes);
    return first_lanes(end) & static_cast<__mmask16>(~first_lanes(first));
  }

  template <int R, int C>
  void score_columns(int column, const float* queries, float* scores) const {
    __m512 dots[R][C];
#pragma GCC unroll 8
    for (auto& row : dots)
      for (auto& dot : row) dot = _mm512_setzero_ps();
    for (int64_t i = 0; i < head_dim; ++i) {
      __m512 key[C];
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) key[c] = load(keys[column + c] + i * key_stride);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512 q = _mm512_set1_ps(queries[r * padded + i]);
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) dots[r][c] = _mm512_fmadd_ps(key[c], q, dots[r][c]);
      }
    }
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        if constexpr (std::is_same_v<Element, int8_t>) {
          dots[r][c] = _mm512_mul_ps(dots[r][c], load(key_scales[column + c]));
        }
        _mm512_storeu_ps(scores + r * kSpan + (column + c) * kLanes, dots[r][c]);
      }
    }
  }

  template <int R, int V>
  void sum_vectors(int64_t offset, const float* weights, float* sums) const {
    __m512 totals[R][V];
#pragma GCC unroll 8
    for (auto& row : totals)
      for (auto& total : row) total = _mm512_setzero_ps();
    for (int c = 0; c < columns(); ++c) {
      const Element* at = values[c] + offset;
      const float* weight = weights + c * kLanes;
      for (int64_t p = std::min<int64_t>(kLanes, positions - c * kLanes); p > 0; --p, at += padded, ++weight) {
        __m512 value[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) value[v] = load(at + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512 w = _mm512_set1_ps(weight[r * kSpan]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) totals[r][v] = _mm512_fmadd_ps(value[v], w, totals[r][v]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) _mm512_storeu_ps(sums + r * padded + offset + v * kLanes, totals[r][v]);
    }
  }
};

}  // namespace penstock

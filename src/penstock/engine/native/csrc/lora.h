// LoRA (Hu et al. 2021): what an adapter adds to the products of a decoder, y += B (A x), row by row.
//
// Every row may have an adapter of its own, or none; a row without one costs nothing. As everywhere, what a row
// gets depends on this row and its adapter alone, in an order that is always the same.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention.h"
#include "pool.h"
#include "simd.h"

namespace penstock {

// A and B of one product, in float32, the scale in B. Where B is block-diagonal, as for q, k and v in one product,
// only the blocks are kept: each strip of 16 outputs has the ranks from its first one that is not 0 to its last.
class LowRank {
 public:
  // `a` is (rank, inputs), `b` (outputs, rank), in the order of the weight's outputs.
  LowRank(int64_t outputs, int64_t inputs, int64_t rank, const float* a, const float* b);

  const int64_t outputs, inputs, rank;
  int64_t rank_strips() const { return ceil_div(rank, kLanes); }
  // inner[0 .. 16) = ranks 16 s .. 16 s + 15 of A times a row, normed where `norm` is given; `inner` is aligned.
  void reduce(int64_t s, const float* x, const float* norm, float rms, float* inner) const;
  // y + what B makes of `inner` for outputs 16 s .. 16 s + 15.
  __m512 expand(int64_t s, const float* inner, __m512 y) const {
    const Strip& strip = strips_[s];
    const float* b = b_.data() + strip.at;
    __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t r = 0; r < strip.count; ++r, b += kLanes) {
      sums[r & 1] = _mm512_fmadd_ps(_mm512_load_ps(b), _mm512_set1_ps(inner[strip.first + r]), sums[r & 1]);
    }
    return _mm512_add_ps(y, _mm512_add_ps(sums[0], sums[1]));
  }
  int64_t bytes() const { return a_.bytes() + b_.bytes(); }

 private:
  struct Strip {
    int64_t first = 0, count = 0, at = 0;
  };
  Buffer<float> a_;  // [rank strip][inputs][16 ranks]
  Buffer<float> b_;  // [strip][rank of it][16 outputs]
  std::vector<Strip> strips_;
};

// One adapter: of every layer what it adds to each product; null where it adds nothing.
struct Adapter {
  struct Layer {
    std::shared_ptr<LowRank> qkv, output, gate_up, down;
  };
  std::vector<Layer> layers;
  int64_t bytes() const;
};

// The adapters of a step's rows, and what their A make of the rows for one product at a time.
class Adaptation {
 public:
  // `adapters` is one a sequence, null for none; they outlive the step.
  void begin(const Batch& batch, const std::vector<const Adapter*>& adapters);

  // Prepares what `product` of layer `index` adds to rows `row_at(i)`, normed as the weight's own are; gives this
  // or, where no row of the step has anything to add, null.
  template <class RowAt>
  const Adaptation* reduce(Pool& pool, int64_t index, std::shared_ptr<LowRank> Adapter::Layer::*product,
                           const float* norm, float eps, RowAt&& row_at) {
    if (!select(index, product)) return nullptr;
    const auto rows = static_cast<int64_t>(adapted_.size());
    const int64_t tasks = rows * strips_, grain = std::clamp<int64_t>(tasks / (4 * pool.threads()), 1, kLongestGrain);
    pool.run(ceil_div(tasks, grain), [&](int64_t chunk) {
      for (int64_t task = chunk * grain; task < std::min((chunk + 1) * grain, tasks); ++task) {
        const int64_t row = adapted_[task % rows].row, s = task / rows;  // one strip of A for many rows
        const LowRank* low_rank = selected_[row];
        if (low_rank == nullptr || s >= low_rank->rank_strips()) continue;
        const float* x = row_at(row);
        const float rms = norm ? inverse_rms(x, low_rank->inputs, eps) : 1.0f;
        low_rank->reduce(s, x, norm, rms, inner_.data() + (row * strips_ + s) * kLanes);
      }
    });
    return this;
  }

  // Adds to outputs 32 panel .. 32 panel + 31 of a row.
  void add(int64_t row, int64_t panel, __m512& y0, __m512& y1) const {
    const LowRank* low_rank = selected_[row];
    if (low_rank == nullptr) return;
    const float* inner = inner_.data() + row * strips_ * kLanes;
    y0 = low_rank->expand(2 * panel, inner, y0);
    y1 = low_rank->expand(2 * panel + 1, inner, y1);
  }

 private:
  static constexpr int64_t kLongestGrain = 8;  // see decoder.cpp's kRowGrain
  struct Row {
    int64_t row;
    const Adapter* adapter;
  };
  bool select(int64_t index, std::shared_ptr<LowRank> Adapter::Layer::*product);

  std::vector<Row> adapted_;               // rows with an adapter
  std::vector<const LowRank*> selected_;   // of every row, for the product at hand
  int64_t strips_ = 0;                     // of 16 ranks, of the largest among them
  Buffer<float> inner_;                    // [row][strips_][16]
};

}  // namespace penstock

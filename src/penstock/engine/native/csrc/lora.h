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

  static constexpr int kRows = 4;  // taken at once, so that a value that was read is used for each
  const int64_t outputs, inputs, rank;
  int64_t rank_strips() const { return ceil_div(rank, kLanes); }
  // For `count` rows, at most kRows: inner[i * stride + 0 .. 16) = ranks 16 s .. 16 s + 15 of A times row i, normed
  // where `norm` is given.
  void reduce(int64_t s, int count, const float* const* rows, const float* norm, const float* rms, float* inner,
              int64_t stride) const;
  // Adds to y[i * kPanel + 0 .. 16) what B makes of `inner` for outputs 16 s .. 16 s + 15 of row i.
  void expand(int64_t s, int count, const float* inner, int64_t stride, float* y) const;
  int64_t bytes() const { return a_.bytes() + b_.bytes(); }

 private:
  struct Strip {
    int64_t first = 0, count = 0, at = 0;
  };
  template <int R>
  void reduce_rows(int64_t s, const float* const* rows, const float* norm, const float* rms, float* inner,
                   int64_t stride) const;
  template <int R>
  void expand_rows(const Strip& strip, const float* inner, int64_t stride, float* y) const;

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

  // Turns to one product of layer `index`. Gives how many tasks of `reduce` it takes; 0: there is nothing to add.
  int64_t select(int64_t index, std::shared_ptr<LowRank> Adapter::Layer::*product);

  // Task `task` of those that make of rows `row_at(i)`, normed as the weight's own are, what `add` needs; in any
  // order, on any threads.
  template <class RowAt>
  void reduce(int64_t task, const float* norm, float eps, RowAt&& row_at) {
    const auto groups = static_cast<int64_t>(groups_.size());
    const Group& group = groups_[task % groups];  // one strip of A for many rows
    const int64_t s = task / groups;
    const LowRank& low_rank = *selected_[group.row];
    if (s >= low_rank.rank_strips()) return;
    const float* rows[LowRank::kRows];
    float rms[LowRank::kRows];
    for (int i = 0; i < group.count; ++i) {
      rows[i] = row_at(group.row + i);
      rms[i] = norm ? inverse_rms(rows[i], low_rank.inputs, eps) : 1.0f;
    }
    low_rank.reduce(s, group.count, rows, norm, rms, inner_.data() + group.row * stride() + s * kLanes, stride());
  }

  // Adds to outputs 32 panel .. 32 panel + 31 of `count` rows from `start` on, which lie in `tile` row by row.
  void add(int64_t panel, int64_t start, int count, float* tile) const;

 private:
  struct Row {
    int64_t row;
    const Adapter* adapter;
  };
  struct Group {
    int64_t row;
    int count;
  };
  // How many of the rows from `row` on, below `end` and at most LowRank::kRows, have the same matrices.
  int alike(int64_t row, int64_t end) const;
  int64_t stride() const { return strips_ * kLanes; }

  std::vector<Row> adapted_;              // rows with an adapter
  std::vector<const LowRank*> selected_;  // of every row, for the product at hand
  std::vector<Group> groups_;             // of rows that have the same
  int64_t strips_ = 0;                    // of 16 ranks, of the largest among them
  Buffer<float> inner_;                   // [row][strips_][16]
};

}  // namespace penstock

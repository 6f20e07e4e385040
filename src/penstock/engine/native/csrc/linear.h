// y = x W^T + b for four storage formats of W behind one interface.
//
// Weights lie in panels of 32 output channels, in the order in which the kernel reads them, so that a product
// streams them once, front to back. A row of the result depends on its own activations alone, not on how many
// rows are computed with it: the engine's answers do not change with the company they are computed in.
#pragma once

#include <cstdint>
#include <memory>

#include "pool.h"
#include "simd.h"

namespace penstock {

constexpr int kPanel = 32;     // output channels in a panel
constexpr int kTileRows = 12;  // rows a kernel takes at once: 24 accumulators, 2 weights, 1 activation
constexpr int kGroup = 32;     // weights that share a scale in int4

// What a weight format multiplies: rows of float32, or of int8 with a scale each (symmetric, absmax / 127).
//
// Rows come in tiles of up to kTileRows, nearly equal in height: 16 rows are 8 + 8. Within a tile they lie
// interleaved, value by value or quad by quad of codes, so that a kernel walks through them with one pointer.
class Activations {
 public:
  enum class Form { kFloat, kCodes };

  // Makes room for `rows` of `size` values each in that form; what was there is lost.
  void shape(int64_t rows, int64_t size, Form form);
  // Takes row i: times its inverse root mean square and `norm` where norm is given.
  void set_float(int64_t i, const float* x, const float* norm, float eps);
  void set_codes(int64_t i, const float* x, const float* norm, float eps);

  int64_t rows() const { return rows_; }
  int64_t tiles() const { return ceil_div(rows_, kTileRows); }
  // The first row of tile t; of the one after the last, the number of rows.
  int64_t tile_start(int64_t t) const { return rows_ * t / tiles(); }
  int tile_height(int64_t t) const { return static_cast<int>(tile_start(t + 1) - tile_start(t)); }
  // Of tile t: value j of its row r at [j * height + r].
  const float* values(int64_t t) const { return values_.data() + tile_start(t) * stride_; }
  // Of tile t: codes 4 q .. 4 q + 3 of its row r as one word at [q * height + r].
  const int32_t* quads(int64_t t) const { return quads_.data() + tile_start(t) * stride_ / 4; }
  float scale(int64_t i) const { return scales_.data()[i]; }
  // Sums of codes: over the row, and over each kGroup of it.
  int32_t sum(int64_t i) const { return sums_.data()[i]; }
  const int32_t* group_sums(int64_t i) const { return group_sums_.data() + i * (stride_ / kGroup); }

 private:
  // The tile of row i.
  int64_t tile_of(int64_t i) const { return ((i + 1) * tiles() - 1) / rows_; }

  int64_t rows_ = 0, size_ = 0, stride_ = 0;
  Buffer<float> values_, scales_;
  Buffer<int32_t> quads_, sums_, group_sums_;
};

// What becomes of a product.
enum class Into {
  kStore,    // out = y
  kAdd,      // out += y
  kSiluMul,  // panels hold 16 gates, then the 16 values they gate: out = silu(gate) * value, half as wide
};

class Adaptation;

class Weight {
 public:
  Weight(int64_t n, int64_t k);
  virtual ~Weight() = default;

  const int64_t n, k;  // outputs, inputs
  int64_t panels() const { return ceil_div(n, kPanel); }

  // Takes rows [start, start + count) of W, float32 of k values each; any order, each row once. Throws
  // std::invalid_argument for values that the format cannot hold.
  void pack(Pool& pool, int64_t start, int64_t count, const float* rows);
  // The values that row i stands for, k of them: an embedding, where the head is tied to it.
  virtual void unpack(int64_t i, float* out) const = 0;
  void set_bias(const float* bias);

  // What this format multiplies.
  virtual Activations::Form form() const = 0;
  // Prepares row i of `to`, shaped for this weight.
  virtual void prepare(Activations& to, int64_t i, const float* x, const float* norm, float eps) const = 0;
  // out[r][0..31] = row r of tile t of `from` times panel `panel`, bias not added.
  virtual void tile(int64_t panel, const Activations& from, int64_t t, float* out) const = 0;
  virtual int64_t bytes() const = 0;

  // The whole product, and what `adaptation` adds to its rows if it is given. `out` has `out_stride` values a row,
  // at least as many as the product has columns.
  void product(Pool& pool, const Activations& from, float* out, int64_t out_stride, Into into,
               const Adaptation* adaptation = nullptr) const;

 private:
  // Takes row i; false if it has a value that the format cannot hold. Rows are packed by several threads.
  virtual bool pack_row(int64_t i, const float* row) = 0;
  void finish(int64_t panel, float* tile, int count, float* out, int64_t out_stride, Into into) const;

  Buffer<float> bias_;
  bool has_bias_ = false;
};

// `format`: "float32", "bfloat16", "int8" or "int4". Throws std::invalid_argument for any other, and for shapes
// whose sums could leave int32.
std::unique_ptr<Weight> make_weight(const char* format, int64_t n, int64_t k);

}  // namespace penstock

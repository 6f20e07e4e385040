// The decoder's forward pass over a flat batch: norms, products, rotation, attention, MLP, all in float32
// between the products. Mirrors engine/decoder.py, which it is tested against.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "lora.h"

namespace penstock {

struct DecoderShape {
  int64_t hidden_size, intermediate_size, heads, kv_heads, head_dim, vocab_size;
  float eps;                      // of the norms
  std::vector<float> frequencies;  // of the rotation, head_dim / 2: radians a position
  float rotary_scale;             // of cos and sin (yarn)
};

struct Layer {
  std::shared_ptr<Weight> qkv, output, gate_up, down;
  std::vector<float> input_norm, post_attention_norm;
  std::vector<float> q_norm, k_norm;  // empty: none
  int64_t window = 0;                 // latest positions that a query sees; 0: all
};

class Decoder {
 public:
  // `embedding` may be the head itself. Throws std::invalid_argument if shapes do not fit together.
  Decoder(DecoderShape shape, std::vector<Layer> layers, std::shared_ptr<Weight> embedding,
          std::vector<float> norm, std::shared_ptr<Weight> head, std::shared_ptr<KVCache> cache, int threads);

  // Computes the batch into the cache; `logits` is (num_rows, vocab_size), of tokens rows[0 .. num_rows).
  // `tokens` are within the vocabulary. `adapters` are one a sequence, null for none, and fit this decoder. One call
  // at a time.
  void step(const int32_t* tokens, const Batch& batch, const std::vector<const Adapter*>& adapters,
            const int32_t* rows, int64_t num_rows, float* logits);

  // The logits of rows of the last step, (num_rows, vocab_size), and their states behind the last norm,
  // (num_rows, hidden_size). Rows are below last_tokens().
  void logits(const int32_t* rows, int64_t num_rows, float* out);
  void states(const int32_t* rows, int64_t num_rows, float* out);
  int64_t last_tokens() const { return last_tokens_; }

  const DecoderShape& shape() const { return shape_; }
  // Throws std::invalid_argument if an adapter was made for other shapes.
  void check(const Adapter& adapter) const;
  const KVShape& cache_shape() const { return cache_->shape; }
  int64_t weight_bytes() const;

 private:
  void reserve(int64_t tokens);
  // Prepares the rows of a product, and in the same run does as many tasks of adapters.
  template <class RowAt>
  void prepare(const Weight& to, int64_t rows, const float* norm, RowAt&& row_at, int64_t num_reductions = 0);
  // One product of layer `index` for all rows of the step, adapters included.
  template <class RowAt>
  void multiply(int64_t index, std::shared_ptr<Weight> Layer::*weight, std::shared_ptr<LowRank> Adapter::Layer::*added,
                int64_t rows, const float* norm, RowAt&& row_at, float* out, int64_t out_stride, Into into);
  void attention(const Layer& layer, int64_t index, const Batch& batch);
  void rotate_and_store(const Layer& layer, int64_t index, const Batch& batch, int64_t sequence, int64_t token);
  void norm_and_rotate(float* head, const std::vector<float>& norm, const float* cos, const float* sin) const;
  void rotations(const Batch& batch);

  const DecoderShape shape_;
  const std::vector<Layer> layers_;
  const std::shared_ptr<Weight> embedding_, head_;
  const std::vector<float> norm_;
  const std::shared_ptr<KVCache> cache_;
  const int64_t qkv_width_, out_width_;
  Pool pool_;
  Activations activations_;
  Adaptation adaptation_;
  Buffer<float> states_, qkv_, attended_, mlp_, cos_, sin_;
  int64_t last_tokens_ = 0;
};

}  // namespace penstock

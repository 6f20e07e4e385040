#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace penstock {
namespace {

// Row work is handed out in pieces of this many rows: one row is too short to be worth a hand-over.
constexpr int64_t kRowGrain = 8;

template <class Work>
void over_rows(Pool& pool, int64_t rows, Work&& work) {
  pool.run(ceil_div(rows, kRowGrain), [&](int64_t chunk) {
    for (int64_t i = chunk * kRowGrain; i < std::min((chunk + 1) * kRowGrain, rows); ++i) work(i);
  });
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

}  // namespace

Decoder::Decoder(DecoderShape shape, std::vector<Layer> layers, std::shared_ptr<Weight> embedding,
                 std::vector<float> norm, std::shared_ptr<Weight> head, std::shared_ptr<KVCache> cache, int threads)
    : shape_(std::move(shape)),
      layers_(std::move(layers)),
      embedding_(std::move(embedding)),
      head_(std::move(head)),
      norm_(std::move(norm)),
      cache_(std::move(cache)),
      qkv_width_((shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim),
      out_width_(shape_.heads * shape_.head_dim),
      pool_(threads) {
  const auto hidden = static_cast<size_t>(shape_.hidden_size), head_dim = static_cast<size_t>(shape_.head_dim);
  const auto fits = [](const std::shared_ptr<Weight>& w, int64_t n, int64_t k) { return w && w->n == n && w->k == k; };
  require(fits(embedding_, shape_.vocab_size, shape_.hidden_size), "the embedding has another shape");
  require(fits(head_, shape_.vocab_size, shape_.hidden_size), "the head has another shape");
  require(norm_.size() == hidden, "the last norm has another size");
  require(shape_.frequencies.size() * 2 == head_dim, "there is one frequency for two elements of a head");
  require(cache_ && cache_->shape.layers == static_cast<int64_t>(layers_.size()) &&
              cache_->shape.kv_heads == shape_.kv_heads && cache_->shape.head_dim == shape_.head_dim,
          "the KV cache has another shape");
  require(shape_.heads % shape_.kv_heads == 0, "heads are shared evenly among key-value heads");
  const int64_t gates = round_up(shape_.intermediate_size, kLanes);
  for (const Layer& layer : layers_) {
    require(fits(layer.qkv, qkv_width_, shape_.hidden_size), "a qkv projection has another shape");
    require(fits(layer.output, shape_.hidden_size, out_width_), "an output projection has another shape");
    require(fits(layer.gate_up, 2 * gates, shape_.hidden_size), "a gate and up projection has another shape");
    require(fits(layer.down, shape_.hidden_size, shape_.intermediate_size), "a down projection has another shape");
    require(layer.input_norm.size() == hidden && layer.post_attention_norm.size() == hidden,
            "a norm has another size");
    require(layer.q_norm.size() == layer.k_norm.size() &&
                (layer.q_norm.empty() || layer.q_norm.size() == head_dim),
            "a norm of queries or keys has another size");
    require(layer.window >= 0, "a window is a number of positions");
  }
}

template <class RowAt>
void Decoder::prepare(const Weight& to, int64_t rows, const float* norm, RowAt&& row_at, int64_t num_reductions) {
  activations_.shape(rows, to.k, to.form());
  const int64_t tiles = activations_.tiles();
  pool_.run(tiles + num_reductions, [&](int64_t t) {
    if (t >= tiles) return adaptation_.reduce(t - tiles, norm, shape_.eps, row_at);
    // A tile belongs to one thread: its rows share cache lines.
    for (int64_t i = activations_.tile_start(t); i < activations_.tile_start(t + 1); ++i) {
      to.prepare(activations_, i, row_at(i), norm, shape_.eps);
    }
  });
}

template <class RowAt>
void Decoder::multiply(int64_t index, std::shared_ptr<Weight> Layer::*weight,
                       std::shared_ptr<LowRank> Adapter::Layer::*added, int64_t rows, const float* norm, RowAt&& row_at,
                       float* out, int64_t out_stride, Into into) {
  const Weight& by = *(layers_[index].*weight);
  const int64_t num_reductions = adaptation_.select(index, added);
  prepare(by, rows, norm, row_at, num_reductions);
  by.product(pool_, activations_, out, out_stride, into, num_reductions ? &adaptation_ : nullptr);
}

void Decoder::step(const int32_t* tokens, const Batch& batch, const std::vector<const Adapter*>& adapters,
                   const int32_t* rows, int64_t num_rows, float* logits) {
  reserve(batch.tokens);
  last_tokens_ = batch.tokens;
  adaptation_.begin(batch, adapters);
  const int64_t hidden = shape_.hidden_size, count = batch.tokens;
  over_rows(pool_, count, [&](int64_t i) { embedding_->unpack(tokens[i], states_.data() + i * hidden); });
  rotations(batch);
  const int64_t mlp_width = round_up(shape_.intermediate_size, kLanes);
  const auto state = [&](int64_t i) { return states_.data() + i * hidden; };
  const auto attended = [&](int64_t i) { return attended_.data() + i * out_width_; };
  const auto gated = [&](int64_t i) { return mlp_.data() + i * mlp_width; };
  using Added = Adapter::Layer;
  for (int64_t index = 0; index < static_cast<int64_t>(layers_.size()); ++index) {
    const Layer& layer = layers_[index];
    multiply(index, &Layer::qkv, &Added::qkv, count, layer.input_norm.data(), state, qkv_.data(), qkv_width_,
             Into::kStore);
    attention(layer, index, batch);
    multiply(index, &Layer::output, &Added::output, count, nullptr, attended, states_.data(), hidden, Into::kAdd);
    multiply(index, &Layer::gate_up, &Added::gate_up, count, layer.post_attention_norm.data(), state, mlp_.data(),
             mlp_width, Into::kSiluMul);
    multiply(index, &Layer::down, &Added::down, count, nullptr, gated, states_.data(), hidden, Into::kAdd);
  }
  this->logits(rows, num_rows, logits);
}

void Decoder::check(const Adapter& adapter) const {
  require(adapter.layers.size() == layers_.size(), "an adapter has another number of layers");
  const auto fits = [](const std::shared_ptr<LowRank>& added, const std::shared_ptr<Weight>& to) {
    return !added || (added->outputs == to->n && added->inputs == to->k);
  };
  for (size_t index = 0; index < layers_.size(); ++index) {
    const Layer& layer = layers_[index];
    const Adapter::Layer& added = adapter.layers[index];
    require(fits(added.qkv, layer.qkv) && fits(added.output, layer.output) && fits(added.gate_up, layer.gate_up) &&
                fits(added.down, layer.down),
            "an adapter has another shape");
  }
}

void Decoder::logits(const int32_t* rows, int64_t num_rows, float* out) {
  prepare(*head_, num_rows, norm_.data(), [&](int64_t i) { return states_.data() + rows[i] * shape_.hidden_size; });
  head_->product(pool_, activations_, out, shape_.vocab_size, Into::kStore);
}

void Decoder::states(const int32_t* rows, int64_t num_rows, float* out) {
  const int64_t hidden = shape_.hidden_size;
  over_rows(pool_, num_rows, [&](int64_t i) {
    const float* from = states_.data() + rows[i] * hidden;
    const float scale = inverse_rms(from, hidden, shape_.eps);
    for (int64_t j = 0; j < hidden; ++j) out[i * hidden + j] = from[j] * scale * norm_[j];
  });
}

void Decoder::attention(const Layer& layer, int64_t index, const Batch& batch) {
  // Every key and value of the step is in the cache before any query looks for it.
  pool_.run(batch.sequences, [&](int64_t s) {
    for (int64_t token = batch.query_starts[s]; token < batch.query_starts[s + 1]; ++token) {
      rotate_and_store(layer, index, batch, s, token);
    }
  });
  cache_->attend(pool_, batch, index, shape_.heads, layer.window, qkv_.data(), qkv_width_, attended_.data(),
                 out_width_);
}

void Decoder::rotate_and_store(const Layer& layer, int64_t index, const Batch& batch, int64_t sequence,
                               int64_t token) {
  const int64_t half = shape_.head_dim / 2;
  const float *cos = cos_.data() + token * half, *sin = sin_.data() + token * half;
  float* heads = qkv_.data() + token * qkv_width_;
  float* keys = heads + out_width_;
  float* values = keys + shape_.kv_heads * shape_.head_dim;
  for (int64_t h = 0; h < shape_.heads; ++h) norm_and_rotate(heads + h * shape_.head_dim, layer.q_norm, cos, sin);
  for (int64_t h = 0; h < shape_.kv_heads; ++h) norm_and_rotate(keys + h * shape_.head_dim, layer.k_norm, cos, sin);
  cache_->store(index, batch.table(sequence), batch.positions[token], keys, values);
}

void Decoder::norm_and_rotate(float* head, const std::vector<float>& norm, const float* cos, const float* sin) const {
  const int64_t half = shape_.head_dim / 2;
  if (!norm.empty()) {
    const float scale = inverse_rms(head, shape_.head_dim, shape_.eps);
    for (int64_t i = 0; i < shape_.head_dim; ++i) head[i] = head[i] * scale * norm[i];
  }
  for (int64_t i = 0; i < half; ++i) {
    const float first = head[i], second = head[i + half];
    head[i] = first * cos[i] - second * sin[i];
    head[i + half] = second * cos[i] + first * sin[i];
  }
}

void Decoder::rotations(const Batch& batch) {
  const int64_t half = shape_.head_dim / 2;
  over_rows(pool_, batch.tokens, [&](int64_t t) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(batch.positions[t]) * shape_.frequencies[i];
      cos_.data()[t * half + i] = std::cos(angle) * shape_.rotary_scale;
      sin_.data()[t * half + i] = std::sin(angle) * shape_.rotary_scale;
    }
  });
}

void Decoder::reserve(int64_t tokens) {
  states_.reserve(tokens * shape_.hidden_size);
  qkv_.reserve(tokens * qkv_width_);
  attended_.reserve(tokens * out_width_);
  mlp_.reserve(tokens * round_up(shape_.intermediate_size, kLanes));
  cos_.reserve(tokens * shape_.head_dim / 2);
  sin_.reserve(tokens * shape_.head_dim / 2);
}

int64_t Decoder::weight_bytes() const {
  int64_t bytes = head_->bytes() + (embedding_ == head_ ? 0 : embedding_->bytes());
  for (const Layer& layer : layers_) {
    bytes += layer.qkv->bytes() + layer.output->bytes() + layer.gate_up->bytes() + layer.down->bytes();
  }
  return bytes;
}

}  // namespace penstock

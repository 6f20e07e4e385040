#include "attention.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "span.h"

namespace penstock {
namespace {

constexpr int64_t kTileQueries = 24;  // queries of a chunk that are taken through the context together

// Where one thread works on a tile.
struct Scratch {
  Buffer<float> queries, scores, sums, merged;
  std::vector<Partial> spans, partials;

  void reserve(int64_t rows, int64_t padded) {
    queries.reserve(rows * padded);
    scores.reserve(rows * kSpan);
    sums.reserve(rows * padded);
    merged.reserve(rows * padded);
    spans.resize(rows);
    partials.resize(rows);
  }
};

// Queries of one sequence and key-value head that go through the context together.
struct Tile {
  int64_t sequence, first_token, tokens;
  int64_t first_span, end_span;  // spans of kSpan positions
  int64_t partial = -1;          // for one span of several: the index of what it leaves behind
};

template <class Element>
class PagedCache : public KVCache {
 public:
  explicit PagedCache(const KVShape& shape)
      : KVCache(shape), padded_(round_up(shape.head_dim, kLanes)), pages_(allocate(bytes_of(shape))) {}

  int64_t block_bytes() const override { return shape.layers * shape.kv_heads * page_bytes(shape); }

  void read_block(int64_t block, std::byte* to) const override {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      std::memcpy(to + layer * layer_bytes(), page_of(layer, block, 0), layer_bytes());
    }
  }

  void write_block(int64_t block, const std::byte* from) override {
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      std::memcpy(page_of(layer, block, 0), from + layer * layer_bytes(), layer_bytes());
    }
  }

  void store(int64_t layer, const int32_t* table, int64_t position, const float* key,
             const float* value) override {
    const int64_t offset = position % shape.block_size;
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      std::byte* page = page_of(layer, table[position / shape.block_size], head);
      put(keys(page) + offset, shape.block_size, scales(page) + offset, key + head * shape.head_dim);
      put(values(page) + offset * padded_, 1, scales(page) + shape.block_size + offset,
          value + head * shape.head_dim);
    }
  }

  void attend(Pool& pool, const Batch& batch, int64_t layer, int64_t heads, int64_t window, const float* query,
              int64_t query_stride, float* out, int64_t out_stride) override {
    const int64_t group = heads / shape.kv_heads;
    plan(batch, group, window);
    const View view{batch, layer, group, window, query, query_stride, out, out_stride};
    partial_sums_.reserve(num_partials_ * heads * padded_);
    partials_.resize(num_partials_ * heads);
    pool.run(static_cast<int64_t>(tiles_.size()) * shape.kv_heads, [&](int64_t i) {
      run_tile(view, tiles_[i / shape.kv_heads], i % shape.kv_heads);
    });
    if (num_partials_ == 0) return;
    pool.run(static_cast<int64_t>(split_.size()) * shape.kv_heads, [&](int64_t i) {
      join_spans(view, split_[i / shape.kv_heads], i % shape.kv_heads);
    });
  }

 private:
  struct View {
    const Batch& batch;
    int64_t layer, group, window;
    const float* query;
    int64_t query_stride;
    float* out;
    int64_t out_stride;
  };

  static int64_t page_bytes(const KVShape& s) {
    const int64_t elements = (s.head_dim + round_up(s.head_dim, kLanes)) * s.block_size;
    const int64_t scales = std::is_same_v<Element, int8_t> ? 2 * s.block_size * int64_t{sizeof(float)} : 0;
    return round_up(elements * static_cast<int64_t>(sizeof(Element)) + scales, 64);
  }
  int64_t layer_bytes() const { return shape.kv_heads * page_bytes(shape); }  // of one block
  static int64_t bytes_of(const KVShape& s) { return s.layers * s.blocks * s.kv_heads * page_bytes(s); }

  struct Unmap {
    int64_t bytes;
    void operator()(std::byte* memory) const { munmap(memory, bytes); }
  };
  static std::unique_ptr<std::byte, Unmap> allocate(int64_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return {static_cast<std::byte*>(memory), Unmap{bytes}};
  }

  std::byte* page_of(int64_t layer, int64_t block, int64_t head) const {
    return pages_.get() + ((layer * shape.blocks + block) * shape.kv_heads + head) * page_bytes(shape);
  }
  Element* keys(std::byte* page) const { return reinterpret_cast<Element*>(page); }
  Element* values(std::byte* page) const { return keys(page) + shape.head_dim * shape.block_size; }
  float* scales(std::byte* page) const {
    return reinterpret_cast<float*>(values(page) + padded_ * shape.block_size);
  }

  void put(Element* to, int64_t stride, float* scale, const float* from) const {
    if constexpr (std::is_same_v<Element, int8_t>) {
      const int64_t size = shape.head_dim;
      const auto load_at = [&](int64_t i) { return _mm512_maskz_loadu_ps(first_lanes(size - i), from + i); };
      const Int8Scale codes(largest_magnitude(size, load_at));
      *scale = codes.step;
      for (int64_t i = 0; i < size; i += kLanes) {
        alignas(16) int8_t lanes[kLanes];
        _mm_store_si128(reinterpret_cast<__m128i*>(lanes), _mm512_cvtsepi32_epi8(codes.codes(load_at(i))));
        for (int64_t j = i; j < std::min(i + kLanes, size); ++j) to[j * stride] = lanes[j - i];
      }
    } else if constexpr (std::is_same_v<Element, bf16>) {
      for (int64_t i = 0; i < shape.head_dim; ++i) to[i * stride] = to_bf16(from[i]);
    } else {
      for (int64_t i = 0; i < shape.head_dim; ++i) to[i * stride] = from[i];
    }
  }

  // Cuts the batch into tiles: chunks by rows, single tokens with a long context by spans.
  void plan(const Batch& batch, int64_t group, int64_t window) {
    tiles_.clear();
    split_.clear();
    num_partials_ = 0;
    const int64_t height = std::max<int64_t>(1, kTileQueries / group);
    for (int64_t s = 0; s < batch.sequences; ++s) {
      const int64_t begin = batch.query_starts[s], end = batch.query_starts[s + 1];
      for (int64_t token = begin; token < end; token += height) {
        const int64_t tokens = std::min(height, end - token);
        const int64_t oldest = first_seen(batch.positions[token], window);
        Tile tile{s, token, tokens, oldest / kSpan, batch.positions[token + tokens - 1] / kSpan + 1};
        if (end - begin > 1 || tile.end_span - tile.first_span == 1) {
          tiles_.push_back(tile);
          continue;
        }
        tile.partial = num_partials_;
        split_.push_back(tile);
        for (int64_t span = tile.first_span; span < tile.end_span; ++span) {
          tiles_.push_back({s, token, 1, span, span + 1, num_partials_++});
        }
      }
    }
  }

  static int64_t first_seen(int64_t position, int64_t window) {
    return window ? std::max<int64_t>(0, position - window + 1) : 0;
  }

  void run_tile(const View& view, const Tile& tile, int64_t head) {
    thread_local Scratch scratch;
    const int64_t rows = tile.tokens * view.group;
    scratch.reserve(rows, padded_);
    load_queries(view, tile, head, scratch);
    for (int64_t r = 0; r < rows; ++r) scratch.partials[r] = {kNothing, 0.0f, scratch.merged.data() + r * padded_};
    for (int64_t span = tile.first_span; span < tile.end_span; ++span) {
      run_span(view, tile, head, span, scratch);
      for (int64_t r = 0; r < rows; ++r) merge(scratch.partials[r], scratch.spans[r], padded_);
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (tile.partial < 0) {
        const int64_t token = tile.first_token + r / view.group;
        finish(view, token, head * view.group + r % view.group, scratch.partials[r]);
      } else {
        keep(view, tile.partial, head * view.group + r, scratch.partials[r]);
      }
    }
  }

  // Row r is token r / group, head r % group of the group; scaled by 1 / sqrt(head_dim).
  void load_queries(const View& view, const Tile& tile, int64_t head, Scratch& scratch) const {
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(static_cast<float>(shape.head_dim)));
    for (int64_t r = 0; r < tile.tokens * view.group; ++r) {
      const float* from = view.query + (tile.first_token + r / view.group) * view.query_stride +
                          (head * view.group + r % view.group) * shape.head_dim;
      for (int64_t i = 0; i < shape.head_dim; i += kLanes) {
        const __mmask16 lanes = first_lanes(shape.head_dim - i);
        _mm512_mask_storeu_ps(scratch.queries.data() + r * padded_ + i, lanes,
                              _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, from + i), scale));
      }
    }
  }

  void run_span(const View& view, const Tile& tile, int64_t head, int64_t index, Scratch& scratch) const {
    const int64_t rows = tile.tokens * view.group, start = index * kSpan;
    const int64_t last = view.batch.positions[tile.first_token + tile.tokens - 1];
    const Span<Element> span = span_of(view.layer, view.batch.table(tile.sequence), head, start, last);
    for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
      span.score(static_cast<int>(std::min<int64_t>(kRowsAtOnce, rows - r)), scratch.queries.data() + r * padded_,
                 scratch.scores.data() + r * kSpan);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = view.batch.positions[tile.first_token + r / view.group];
      scratch.spans[r] = span.softmax(scratch.scores.data() + r * kSpan,
                                      first_seen(position, view.window) - start, position - start);
      scratch.spans[r].sums = scratch.sums.data() + r * padded_;
    }
    for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
      span.sum(static_cast<int>(std::min<int64_t>(kRowsAtOnce, rows - r)), scratch.scores.data() + r * kSpan,
               scratch.sums.data() + r * padded_);
    }
  }

  // Positions [start, start + kSpan) of a sequence, as far as `last`.
  Span<Element> span_of(int64_t layer, const int32_t* table, int64_t head, int64_t start, int64_t last) const {
    Span<Element> span;
    span.positions = std::min(kSpan, last + 1 - start);
    span.head_dim = shape.head_dim;
    span.padded = padded_;
    span.key_stride = shape.block_size;
    for (int c = 0; c < span.columns(); ++c) {
      const int64_t position = start + c * kLanes, offset = position % shape.block_size;
      std::byte* page = page_of(layer, table[position / shape.block_size], head);
      span.keys[c] = keys(page) + offset;
      span.values[c] = values(page) + offset * padded_;
      span.key_scales[c] = scales(page) + offset;
      span.value_scales[c] = scales(page) + shape.block_size + offset;
    }
    return span;
  }

  void finish(const View& view, int64_t token, int64_t head, const Partial& partial) const {
    float* out = view.out + token * view.out_stride + head * shape.head_dim;
    const __m512 inverse = _mm512_set1_ps(1.0f / partial.total);
    for (int64_t i = 0; i < shape.head_dim; i += kLanes) {
      _mm512_mask_storeu_ps(out + i, first_lanes(shape.head_dim - i), _mm512_mul_ps(load(partial.sums + i), inverse));
    }
  }

  void keep(const View& view, int64_t index, int64_t head, const Partial& partial) {
    const int64_t place = index * view.group * shape.kv_heads + head;
    float* sums = partial_sums_.data() + place * padded_;
    std::copy(partial.sums, partial.sums + padded_, sums);
    partials_[place] = {partial.largest, partial.total, sums};
  }

  void join_spans(const View& view, const Tile& tile, int64_t head) {
    thread_local Buffer<float> sums;
    sums.reserve(padded_);
    const int64_t heads = view.group * shape.kv_heads;
    for (int64_t h = head * view.group; h < (head + 1) * view.group; ++h) {
      Partial all{kNothing, 0.0f, sums.data()};
      for (int64_t i = 0; i < tile.end_span - tile.first_span; ++i) {
        merge(all, partials_[(tile.partial + i) * heads + h], padded_);
      }
      finish(view, tile.first_token, h, all);
    }
  }

  const int64_t padded_;
  std::unique_ptr<std::byte, Unmap> pages_;
  std::vector<Tile> tiles_, split_;
  int64_t num_partials_ = 0;
  Buffer<float> partial_sums_;
  std::vector<Partial> partials_;
};

}  // namespace

std::unique_ptr<KVCache> make_kv_cache(const char* format, const KVShape& shape) {
  if (std::min({shape.layers, shape.blocks, shape.block_size, shape.kv_heads, shape.head_dim}) < 1) {
    throw std::invalid_argument("a KV cache has at least one of everything");
  }
  if (shape.block_size % kLanes) throw std::invalid_argument("the block size must be a multiple of 16");
  const std::string name = format;
  if (name == "float32") return std::make_unique<PagedCache<float>>(shape);
  if (name == "bfloat16") return std::make_unique<PagedCache<bf16>>(shape);
  if (name == "int8") return std::make_unique<PagedCache<int8_t>>(shape);
  throw std::invalid_argument("unknown KV cache format " + name);
}

}  // namespace penstock

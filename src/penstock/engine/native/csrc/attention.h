// The paged KV cache and attention over it, without copies of the context.
//
// A page holds one block of one layer and key-value head: keys transposed, [head_dim][block_size], so that a
// vector is 16 positions and a product of a query and a vector needs no sum across lanes; then values,
// [block_size][head_dim padded to 16]; for int8 then a scale for every key and every value.
//
// A query's result is a function of its own row and of the context alone: positions are taken in spans of
// 256, aligned to absolute positions, each by a softmax of two passes, and spans are merged in order. Whether
// it is computed alone or in a chunk, in one piece or span by span on several threads, the bits are the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "pool.h"
#include "simd.h"

namespace penstock {

// The tokens of a step, sequence after sequence. All arrays belong to the caller.
struct Batch {
  int64_t tokens = 0, sequences = 0, table_stride = 0;
  const int32_t* positions = nullptr;     // [tokens], rising within a sequence
  const int32_t* query_starts = nullptr;  // [sequences + 1] into tokens
  const int32_t* block_tables = nullptr;  // [sequences][table_stride]

  const int32_t* table(int64_t sequence) const { return block_tables + sequence * table_stride; }
};

struct KVShape {
  int64_t layers, blocks, block_size, kv_heads, head_dim;
};

class KVCache {
 public:
  virtual ~KVCache() = default;
  const KVShape shape;

  // Keeps key and value, float32 (kv_heads, head_dim) each, of the token at `position` in `table`.
  virtual void store(int64_t layer, const int32_t* table, int64_t position, const float* key,
                     const float* value) = 0;
  // Attends causally: query and out are float32 (tokens, heads, head_dim), rows `query_stride` and `out_stride`
  // apart. A token sees positions up to its own, the latest `window` of them if window is not 0.
  virtual void attend(Pool& pool, const Batch& batch, int64_t layer, int64_t heads, int64_t window,
                      const float* query, int64_t query_stride, float* out, int64_t out_stride) = 0;
  virtual int64_t block_bytes() const = 0;  // over all layers
  // Copies a block's pages of all layers into or out of block_bytes() bytes, as they lie here.
  virtual void read_block(int64_t block, std::byte* to) const = 0;
  virtual void write_block(int64_t block, const std::byte* from) = 0;

 protected:
  explicit KVCache(const KVShape& shape) : shape(shape) {}
};

// `format`: "float32", "bfloat16" or "int8". Memory is taken as it is written. Throws std::invalid_argument for
// another format or a block size that is no multiple of 16, std::bad_alloc if there is no address space.
std::unique_ptr<KVCache> make_kv_cache(const char* format, const KVShape& shape);

}  // namespace penstock

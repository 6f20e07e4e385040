// What Python sees. Arrays are numpy's, checked here; every call that computes gives the interpreter's lock up.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <malloc.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "decoder.h"
#include "sampler.h"

namespace py = pybind11;
using namespace penstock;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // no forcecast: another dtype is a defect of the caller

template <class T>
void require_shape(const Array<T>& array, std::initializer_list<int64_t> shape, const char* name) {
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = array.shape(i) == shape.begin()[i];
  if (!fits) throw std::invalid_argument(std::string(name) + " has the wrong shape");
}

template <class T>
int64_t length_of(const Array<T>& array, const char* name) {
  if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + " has the wrong shape");
  return array.shape(0);
}

// Borrows the arrays, which must outlive it.
Batch batch_of(const Array<int32_t>& positions, const Array<int32_t>& starts, const Array<int32_t>& tables,
               const KVShape& cache) {
  Batch batch;
  batch.tokens = length_of(positions, "positions");
  batch.sequences = length_of(starts, "query_starts") - 1;
  if (tables.ndim() != 2) throw std::invalid_argument("block_tables has the wrong shape");
  batch.table_stride = tables.shape(1);
  require_shape(tables, {batch.sequences, batch.table_stride}, "block_tables");
  batch.positions = positions.data();
  batch.query_starts = starts.data();
  batch.block_tables = tables.data();
  if (batch.sequences < 1 || starts.data()[0] != 0 || starts.data()[batch.sequences] != batch.tokens) {
    throw std::invalid_argument("query_starts must run from 0 to the number of tokens");
  }
  for (int64_t s = 0; s < batch.sequences; ++s) {
    const int64_t first = batch.query_starts[s], end = batch.query_starts[s + 1];
    if (first >= end || end > batch.tokens) throw std::invalid_argument("every sequence has at least one token");
    const int64_t last = batch.positions[end - 1];
    if (last / cache.block_size >= batch.table_stride) throw std::invalid_argument("a block table is too short");
    for (int64_t b = 0; b <= last / cache.block_size; ++b) {
      if (batch.table(s)[b] < 0 || batch.table(s)[b] >= cache.blocks) throw std::invalid_argument("no such block");
    }
    for (int64_t t = first; t < end; ++t) {
      if (batch.positions[t] != last - (end - 1 - t) || batch.positions[t] < 0) {
        throw std::invalid_argument("positions of a sequence must follow each other");
      }
    }
  }
  return batch;
}

// Borrows the adapters, one a sequence, null for none.
std::vector<const Adapter*> adapters_of(const Decoder& decoder, const Batch& batch,
                                        const std::vector<std::shared_ptr<Adapter>>& adapters) {
  if (static_cast<int64_t>(adapters.size()) != batch.sequences) {
    throw std::invalid_argument("there is one adapter, or none, for every sequence");
  }
  std::vector<const Adapter*> out;
  for (const auto& adapter : adapters) {
    if (adapter && (out.empty() || out.back() != adapter.get())) decoder.check(*adapter);
    out.push_back(adapter.get());
  }
  return out;
}

void step(Decoder& decoder, const Array<int32_t>& tokens, const Array<int32_t>& positions,
          const Array<int32_t>& starts, const Array<int32_t>& tables, const Array<int32_t>& rows,
          Array<float>& logits, const std::vector<std::shared_ptr<Adapter>>& adapters) {
  const Batch batch = batch_of(positions, starts, tables, decoder.cache_shape());
  const int64_t vocab_size = decoder.shape().vocab_size, num_rows = length_of(rows, "rows");
  require_shape(tokens, {batch.tokens}, "tokens");
  require_shape(logits, {num_rows, vocab_size}, "logits");
  for (int64_t t = 0; t < batch.tokens; ++t) {
    if (tokens.data()[t] < 0 || tokens.data()[t] >= vocab_size) throw std::invalid_argument("no such token");
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    if (rows.data()[r] < 0 || rows.data()[r] >= batch.tokens) throw std::invalid_argument("no such row");
  }
  const std::vector<const Adapter*> added = adapters_of(decoder, batch, adapters);
  float* out = logits.mutable_data();
  py::gil_scoped_release release;
  decoder.step(tokens.data(), batch, added, rows.data(), num_rows, out);
}

// Calls `compute` for rows of the decoder's last step, `width` values each.
template <class Compute>
void read_rows(const Decoder& decoder, const Array<int32_t>& rows, Array<float>& out, int64_t width, Compute&& compute) {
  const int64_t num_rows = length_of(rows, "rows");
  require_shape(out, {num_rows, width}, "out");
  for (int64_t r = 0; r < num_rows; ++r) {
    if (rows.data()[r] < 0 || rows.data()[r] >= decoder.last_tokens()) throw std::invalid_argument("no such row");
  }
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  compute(rows.data(), num_rows, to);
}

Array<float> linear(const Weight& weight, Pool& pool, const Array<float>& x) {
  if (x.ndim() != 2 || x.shape(1) != weight.k) throw std::invalid_argument("x has the wrong shape");
  Array<float> out({x.shape(0), static_cast<py::ssize_t>(weight.n)});
  const float* from = x.data();
  float* to = out.mutable_data();
  const int64_t rows = x.shape(0);
  py::gil_scoped_release release;
  Activations activations;
  activations.shape(rows, weight.k, weight.form());
  for (int64_t i = 0; i < rows; ++i) weight.prepare(activations, i, from + i * weight.k, nullptr, 0.0f);
  weight.product(pool, activations, to, weight.n, Into::kStore);
  return out;
}

Array<float> attend(KVCache& cache, Pool& pool, int64_t layer, int64_t window, const Array<float>& query,
                    const Array<float>& key, const Array<float>& value, const Array<int32_t>& positions,
                    const Array<int32_t>& starts, const Array<int32_t>& tables) {
  const Batch batch = batch_of(positions, starts, tables, cache.shape);
  const int64_t kv_heads = cache.shape.kv_heads, size = cache.shape.head_dim;
  if (query.ndim() != 3 || query.shape(1) < 1 || query.shape(1) % kv_heads) throw std::invalid_argument("query has the wrong shape");
  const int64_t heads = query.shape(1);
  require_shape(query, {batch.tokens, heads, size}, "query");
  require_shape(key, {batch.tokens, kv_heads, size}, "key");
  require_shape(value, {batch.tokens, kv_heads, size}, "value");
  if (layer < 0 || layer >= cache.shape.layers) throw std::invalid_argument("no such layer");
  if (window < 0) throw std::invalid_argument("a window is a number of positions");
  Array<float> out({static_cast<py::ssize_t>(batch.tokens), static_cast<py::ssize_t>(heads * size)});
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  for (int64_t s = 0; s < batch.sequences; ++s) {
    for (int64_t t = batch.query_starts[s]; t < batch.query_starts[s + 1]; ++t) {
      cache.store(layer, batch.table(s), batch.positions[t], key.data() + t * kv_heads * size,
                  value.data() + t * kv_heads * size);
    }
  }
  cache.attend(pool, batch, layer, heads, window, query.data(), heads * size, to, heads * size);
  return out;
}

void read_blocks(const KVCache& cache, const Array<int32_t>& blocks, Array<uint8_t>& out) {
  const int64_t count = length_of(blocks, "blocks"), bytes = cache.block_bytes();
  require_shape(out, {count, bytes}, "out");
  for (int64_t i = 0; i < count; ++i) {
    if (blocks.data()[i] < 0 || blocks.data()[i] >= cache.shape.blocks) throw std::invalid_argument("no such block");
  }
  auto* to = reinterpret_cast<std::byte*>(out.mutable_data());
  py::gil_scoped_release release;
  for (int64_t i = 0; i < count; ++i) cache.read_block(blocks.data()[i], to + i * bytes);
}

void write_block(KVCache& cache, int64_t block, const Array<uint8_t>& page) {
  require_shape(page, {cache.block_bytes()}, "page");
  if (block < 0 || block >= cache.shape.blocks) throw std::invalid_argument("no such block");
  const auto* from = reinterpret_cast<const std::byte*>(page.data());
  py::gil_scoped_release release;
  cache.write_block(block, from);
}

// What grammars allow, by row of the logits; nullptr where there is none.
std::vector<const int32_t*> masks_by_row(int64_t rows, int64_t size, const std::optional<Array<int32_t>>& masked,
                                         const std::optional<Array<int32_t>>& allowed) {
  std::vector<const int32_t*> found(rows, nullptr);
  if (!masked || !allowed) return found;
  const int64_t count = length_of(*masked, "masked"), words = ceil_div(size, 32);
  require_shape(*allowed, {count, words}, "allowed");
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = masked->data()[i];
    if (row < 0 || row >= rows) throw std::invalid_argument("no such row");
    found[row] = allowed->data() + i * words;
  }
  return found;
}

std::vector<int32_t> sample_rows(Pool& pool, Array<float>& logits, const Array<double>& temperature,
                                 const Array<int32_t>& top_k, const Array<double>& top_p, const Array<double>& min_p,
                                 const Array<double>& uniform, const std::optional<Array<int32_t>>& masked,
                                 const std::optional<Array<int32_t>>& allowed) {
  if (logits.ndim() != 2 || logits.shape(1) < 1) throw std::invalid_argument("logits has the wrong shape");
  const int64_t rows = logits.shape(0), size = logits.shape(1);
  require_shape(temperature, {rows}, "temperature");
  require_shape(top_k, {rows}, "top_k");
  require_shape(top_p, {rows}, "top_p");
  require_shape(min_p, {rows}, "min_p");
  require_shape(uniform, {rows}, "uniform");
  for (int64_t i = 0; i < rows; ++i) {
    if (top_k.data()[i] < 0) throw std::invalid_argument("top_k is a number of tokens, or 0 for all");
  }
  const auto masks = masks_by_row(rows, size, masked, allowed);
  float* values = masked ? logits.mutable_data() : nullptr;
  std::vector<int32_t> tokens(rows);
  py::gil_scoped_release release;
  pool.run(rows, [&](int64_t i) {
    const Sampling sampling{temperature.data()[i], top_k.data()[i], top_p.data()[i], min_p.data()[i],
                            uniform.data()[i]};
    tokens[i] = masks[i] ? sample_allowed(values + i * size, size, masks[i], sampling)
                         : sample(logits.data() + i * size, size, sampling);
  });
  return tokens;
}

}  // namespace

PYBIND11_MODULE(penstock_kernels, m) {
  py::class_<Pool>(m, "Pool").def(py::init<int>(), py::arg("threads")).def_property_readonly("threads", &Pool::threads);

  m.def("sample", &sample_rows, py::arg("pool"), py::arg("logits").noconvert(), py::arg("temperature"),
        py::arg("top_k"), py::arg("top_p"), py::arg("min_p"), py::arg("uniform"), py::arg("masked") = py::none(),
        py::arg("allowed") = py::none());
  // What the allocator keeps of memory that was freed: a good deal, after a checkpoint was read.
  m.def("give_memory_back", [] {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
  });

  py::class_<Weight, std::shared_ptr<Weight>>(m, "Weight")
      .def(py::init([](const std::string& format, int64_t n, int64_t k) {
        return std::shared_ptr<Weight>(make_weight(format.c_str(), n, k));
      }))
      .def("pack",
           [](Weight& weight, Pool& pool, int64_t start, const Array<float>& rows) {
             if (rows.ndim() != 2 || rows.shape(1) != weight.k || start < 0 || start + rows.shape(0) > weight.n) {
               throw std::invalid_argument("rows do not fit the weight");
             }
             const int64_t count = rows.shape(0);
             const float* data = rows.data();
             py::gil_scoped_release release;
             weight.pack(pool, start, count, data);
           })
      .def("unpack",
           [](const Weight& weight, int64_t i) {
             if (i < 0 || i >= weight.n) throw std::invalid_argument("no such row");
             Array<float> out(weight.k);
             weight.unpack(i, out.mutable_data());
             return out;
           })
      .def("set_bias",
           [](Weight& weight, const Array<float>& bias) {
             require_shape(bias, {weight.n}, "bias");
             weight.set_bias(bias.data());
           })
      .def_property_readonly("nbytes", &Weight::bytes)
      .def("__call__", &linear);

  py::class_<KVCache, std::shared_ptr<KVCache>>(m, "KVCache")
      .def(py::init([](const std::string& format, int64_t layers, int64_t blocks, int64_t block_size,
                       int64_t kv_heads, int64_t head_dim) {
        return std::shared_ptr<KVCache>(
            make_kv_cache(format.c_str(), KVShape{layers, blocks, block_size, kv_heads, head_dim}));
      }))
      .def_property_readonly("block_bytes", &KVCache::block_bytes)
      .def("read_blocks", &read_blocks, py::arg("blocks"), py::arg("out").noconvert())
      .def("write_block", &write_block)
      .def("attend", &attend);

  py::class_<Layer>(m, "Layer")
      .def(py::init<>())
      .def_readwrite("qkv", &Layer::qkv)
      .def_readwrite("output", &Layer::output)
      .def_readwrite("gate_up", &Layer::gate_up)
      .def_readwrite("down", &Layer::down)
      .def_readwrite("input_norm", &Layer::input_norm)
      .def_readwrite("post_attention_norm", &Layer::post_attention_norm)
      .def_readwrite("q_norm", &Layer::q_norm)
      .def_readwrite("k_norm", &Layer::k_norm)
      .def_readwrite("window", &Layer::window);

  py::class_<LowRank, std::shared_ptr<LowRank>>(m, "LowRank")
      .def(py::init([](const Array<float>& a, const Array<float>& b) {
             if (a.ndim() != 2 || b.ndim() != 2 || a.shape(0) != b.shape(1)) {
               throw std::invalid_argument("A is (rank, inputs) and B (outputs, rank)");
             }
             const int64_t outputs = b.shape(0), inputs = a.shape(1), rank = a.shape(0);
             const float *from_a = a.data(), *from_b = b.data();
             py::gil_scoped_release release;
             return std::make_shared<LowRank>(outputs, inputs, rank, from_a, from_b);
           }),
           py::arg("a"), py::arg("b"));

  py::class_<Adapter::Layer>(m, "AdapterLayer")
      .def(py::init<>())
      .def_readwrite("qkv", &Adapter::Layer::qkv)
      .def_readwrite("output", &Adapter::Layer::output)
      .def_readwrite("gate_up", &Adapter::Layer::gate_up)
      .def_readwrite("down", &Adapter::Layer::down);

  py::class_<Adapter, std::shared_ptr<Adapter>>(m, "Adapter")
      .def(py::init([](std::vector<Adapter::Layer> layers) {
             return std::make_shared<Adapter>(Adapter{std::move(layers)});
           }),
           py::arg("layers"))
      .def_property_readonly("nbytes", &Adapter::bytes);

  py::class_<DecoderShape>(m, "DecoderShape")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, std::vector<float>, float>(),
           py::kw_only(), py::arg("hidden_size"), py::arg("intermediate_size"), py::arg("heads"),
           py::arg("kv_heads"), py::arg("head_dim"), py::arg("vocab_size"), py::arg("eps"), py::arg("frequencies"),
           py::arg("rotary_scale"));

  py::class_<Decoder>(m, "Decoder")
      .def(py::init<DecoderShape, std::vector<Layer>, std::shared_ptr<Weight>, std::vector<float>,
                    std::shared_ptr<Weight>, std::shared_ptr<KVCache>, int>(),
           py::kw_only(), py::arg("shape"), py::arg("layers"), py::arg("embedding"), py::arg("norm"),
           py::arg("head"), py::arg("cache"), py::arg("threads"))
      .def("step", &step, py::arg("tokens"), py::arg("positions"), py::arg("query_starts"), py::arg("block_tables"),
           py::arg("rows"), py::arg("logits").noconvert(),  // a converted copy would take the logits with it
           py::arg("adapters"))
      .def("logits",
           [](Decoder& decoder, const Array<int32_t>& rows, Array<float>& out) {
             read_rows(decoder, rows, out, decoder.shape().vocab_size,
                       [&](const int32_t* r, int64_t n, float* to) { decoder.logits(r, n, to); });
           },
           py::arg("rows"), py::arg("out").noconvert())
      .def("states",
           [](Decoder& decoder, const Array<int32_t>& rows, Array<float>& out) {
             read_rows(decoder, rows, out, decoder.shape().hidden_size,
                       [&](const int32_t* r, int64_t n, float* to) { decoder.states(r, n, to); });
           },
           py::arg("rows"), py::arg("out").noconvert())
      .def_property_readonly("weight_bytes", &Decoder::weight_bytes);
}

// The four storage formats of a weight and their inner loops.
#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "linear.h"

namespace penstock {
namespace {

using Accumulators = __m512[2];
using Sums = __m512i[2];

// sum += the products of four unsigned and four signed bytes in each lane. In place: of the intrinsic gcc 12 makes
// copies, and for tall tiles it keeps the sums on the stack, which cost a third of the speed (lab log).
inline void add_products(__m512i& sum, __m512i weights, __m512i activations) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(activations));
}

// Calls `Kernel<R>::run` for R = count, so that each height has a loop of its own with everything in registers.
template <template <int> class Kernel, class... Args>
void by_height(int count, Args&&... args) {
  switch (count) {
#define PENSTOCK_HEIGHT(R) \
  case R:                  \
    return Kernel<R>::run(args...);
    PENSTOCK_HEIGHT(1) PENSTOCK_HEIGHT(2) PENSTOCK_HEIGHT(3) PENSTOCK_HEIGHT(4)
    PENSTOCK_HEIGHT(5) PENSTOCK_HEIGHT(6) PENSTOCK_HEIGHT(7) PENSTOCK_HEIGHT(8)
    PENSTOCK_HEIGHT(9) PENSTOCK_HEIGHT(10) PENSTOCK_HEIGHT(11) PENSTOCK_HEIGHT(12)
#undef PENSTOCK_HEIGHT
    default:
      throw std::invalid_argument("a tile has 1 to 12 rows");
  }
}

// The 32 weights of one input in a panel, as float32: channels 0..15 and 16..31.
inline void load_pair(const float* at, __m512& low, __m512& high) {
  low = _mm512_load_ps(at);
  high = _mm512_load_ps(at + kLanes);
}
// bfloat16: channels c and c + 16 lie side by side, so that a shift and a mask make float32 of them.
inline void load_pair(const bf16* at, __m512& low, __m512& high) {
  const __m512i both = _mm512_load_si512(at);
  low = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  high = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}

template <class Element>
struct FloatKernel {
  // Three rows at a time, with four partial sums each: enough to hide the latency of the addition. The order of
  // the sums is the same for every height, so that a row's result is.
  static constexpr int U = 4, kRowsAtOnce = 3;

  template <int R>
  struct Of {
    static void run(const Element* panel, int64_t k, const float* x, float* out) {
      for (int base = 0; base + kRowsAtOnce <= R; base += kRowsAtOnce) {
        block<kRowsAtOnce, R>(panel, k, x + base, out + base * kPanel);
      }
      constexpr int kLeft = R % kRowsAtOnce;
      if constexpr (kLeft > 0) block<kLeft, R>(panel, k, x + R - kLeft, out + (R - kLeft) * kPanel);
    }
  };

  // R rows of a tile of `height`.
  template <int R, int height>
  static void block(const Element* w, int64_t k, const float* x, float* out) {
    __m512 sums[U][R][2];
#pragma GCC unroll 16
    for (auto& unit : sums)
      for (auto& row : unit) row[0] = row[1] = _mm512_setzero_ps();
    int64_t j = 0;
    for (; j + U <= k; j += U, w += U * kPanel, x += U * height) {
#pragma GCC unroll 16
      for (int u = 0; u < U; ++u) add<R>(w + u * kPanel, x + u * height, sums[u]);
    }
    for (; j < k; ++j, w += kPanel, x += height) add<R>(w, x, sums[0]);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      for (int half = 0; half < 2; ++half) {
        const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0][r][half], sums[1][r][half]),
                                         _mm512_add_ps(sums[2][r][half], sums[3][r][half]));
        _mm512_store_ps(out + r * kPanel + half * kLanes, sum);
      }
    }
  }

  template <int R>
  static inline void add(const Element* w, const float* x, __m512 (&sums)[R][2]) {
    __m512 low, high;
    load_pair(w, low, high);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const __m512 v = _mm512_set1_ps(x[r]);
      sums[r][0] = _mm512_fmadd_ps(low, v, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(high, v, sums[r][1]);
    }
  }
};

template <class Element>
class FloatWeight : public Weight {
 public:
  FloatWeight(int64_t n, int64_t k) : Weight(n, k), panels_(panels() * k * kPanel) {}

  void unpack(int64_t i, float* out) const override {
    for (int64_t j = 0; j < k; ++j) out[j] = to_float(panels_.data()[place(i, j)]);
  }
  Activations::Form form() const override { return Activations::Form::kFloat; }
  void prepare(Activations& to, int64_t i, const float* x, const float* norm, float eps) const override {
    to.set_float(i, x, norm, eps);
  }
  void tile(int64_t panel, const Activations& from, int64_t t, float* out) const override {
    by_height<FloatKernel<Element>::template Of>(from.tile_height(t), panels_.data() + panel * k * kPanel, k,
                                                 from.values(t), out);
  }
  int64_t bytes() const override { return panels_.bytes(); }

 private:
  int64_t place(int64_t i, int64_t j) const {
    const int64_t channel = i % kPanel;
    const int64_t lane = sizeof(Element) == 2 ? channel % kLanes * 2 + channel / kLanes : channel;
    return (i / kPanel * k + j) * kPanel + lane;
  }
  bool pack_row(int64_t i, const float* row) override {
    for (int64_t j = 0; j < k; ++j) {
      if constexpr (sizeof(Element) == 2) {
        panels_.data()[place(i, j)] = to_bf16(row[j]);
      } else {
        panels_.data()[place(i, j)] = row[j];
      }
    }
    return true;
  }

  Buffer<Element> panels_;
};

// int8: one scale a channel. Stored with 128 added, because the instruction multiplies unsigned by signed and
// can broadcast only the signed side, the activations, from memory; what the 128 adds, 128 times the sum of the
// row's codes, is taken off at the end. Four consecutive inputs of a channel lie together.
class Int8Weight : public Weight {
 public:
  Int8Weight(int64_t n, int64_t k)
      : Weight(n, k), quads_(ceil_div(k, 4)), codes_(panels() * quads_ * kQuadBytes), scales_(panels() * kPanel) {
    if (k > kMaxInputs) throw std::invalid_argument("int8 sums of that many inputs could leave int32");
  }

  void unpack(int64_t i, float* out) const override {
    for (int64_t j = 0; j < k; ++j) {
      out[j] = scales_.data()[i] * static_cast<float>(codes_.data()[place(i, j)] - 128);
    }
  }
  Activations::Form form() const override { return Activations::Form::kCodes; }
  void prepare(Activations& to, int64_t i, const float* x, const float* norm, float eps) const override {
    to.set_codes(i, x, norm, eps);
  }
  void tile(int64_t panel, const Activations& from, int64_t t, float* out) const override {
    by_height<Kernel>(from.tile_height(t), codes_.data() + panel * quads_ * kQuadBytes, quads_, from, t,
                      scales_.data() + panel * kPanel, out);
  }
  int64_t bytes() const override { return codes_.bytes() + scales_.bytes(); }

 private:
  static constexpr int64_t kQuadBytes = 4 * kPanel;
  static constexpr int64_t kMaxInputs = 65'536;  // 2^31 / (255 * 128)

  template <int R>
  struct Kernel {
    static void run(const uint8_t* w, int64_t quads, const Activations& from, int64_t t, const float* scales,
                    float* out) {
      // Sums of integers do not depend on their order: few rows use several partial sums to hide latency.
      constexpr int U = R == 1 ? 4 : R <= 3 ? 2 : 1;
      const int32_t* x = from.quads(t);
      const int64_t row = from.tile_start(t);
      __m512i sums[U][R][2];
#pragma GCC unroll 16
      for (auto& unit : sums)
        for (auto& pair : unit) pair[0] = pair[1] = _mm512_setzero_si512();
      int64_t q = 0;
      for (; q + U <= quads; q += U, w += U * kQuadBytes, x += U * R) {
#pragma GCC unroll 4
        for (int u = 0; u < U; ++u) add(w + u * kQuadBytes, x + u * R, sums[u]);
      }
      for (; q < quads; ++q, w += kQuadBytes, x += R) add(w, x, sums[0]);
      const __m512 scale0 = _mm512_load_ps(scales), scale1 = _mm512_load_ps(scales + kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        for (int u = 1; u < U; ++u) {
          sums[0][r][0] = _mm512_add_epi32(sums[0][r][0], sums[u][r][0]);
          sums[0][r][1] = _mm512_add_epi32(sums[0][r][1], sums[u][r][1]);
        }
        const __m512i excess = _mm512_set1_epi32(128 * from.sum(row + r));
        const __m512 scale = _mm512_set1_ps(from.scale(row + r));
        const __m512 y0 = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[0][r][0], excess));
        const __m512 y1 = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[0][r][1], excess));
        _mm512_store_ps(out + r * kPanel, _mm512_mul_ps(_mm512_mul_ps(y0, scale0), scale));
        _mm512_store_ps(out + r * kPanel + kLanes, _mm512_mul_ps(_mm512_mul_ps(y1, scale1), scale));
      }
    }
    static inline void add(const uint8_t* w, const int32_t* x, __m512i (&sums)[R][2]) {
      const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const __m512i v = _mm512_set1_epi32(x[r]);
        add_products(sums[r][0], w0, v);
        add_products(sums[r][1], w1, v);
      }
    }
  };

  bool pack_row(int64_t i, const float* row) override {
    const auto load_at = [&](int64_t j) { return _mm512_maskz_loadu_ps(first_lanes(k - j), row + j); };
    const Int8Scale scale(largest_magnitude(k, load_at));
    scales_.data()[i] = scale.step;
    for (int64_t j = 0; j < k; j += kLanes) {
      alignas(16) uint8_t codes[kLanes];
      const __m128i with_128 = _mm_xor_si128(_mm512_cvtsepi32_epi8(scale.codes(load_at(j))), _mm_set1_epi8(-128));
      _mm_store_si128(reinterpret_cast<__m128i*>(codes), with_128);
      const int64_t end = std::min<int64_t>(kLanes, k - j);
      for (int64_t q = 0; q < end; q += 4) std::memcpy(codes_.data() + place(i, j + q), codes + q, 4);
    }
    return scale.is_sound;
  }
  int64_t place(int64_t i, int64_t j) const {
    return (i / kPanel * quads_ + j / 4) * kQuadBytes + i % kPanel * 4 + j % 4;
  }

  int64_t quads_;
  Buffer<uint8_t> codes_;
  Buffer<float> scales_;
};

// int4: a float16 scale for every 32 inputs of a channel, codes -8..7 stored with 8 added. A block holds 32
// inputs of a panel: 8 quads, two to a byte (the even one in the low half), then the 32 scales.
class Int4Weight : public Weight {
 public:
  Int4Weight(int64_t n, int64_t k)
      : Weight(n, k), groups_(ceil_div(k, kGroup)), blocks_(panels() * groups_ * kBlockBytes) {
    // Inputs beyond k multiply zeros, whatever code they have.
  }

  void unpack(int64_t i, float* out) const override {
    for (int64_t j = 0; j < k; ++j) {
      const uint8_t* block = blocks_.data() + block_of(i, j / kGroup);
      uint16_t scale;
      std::memcpy(&scale, block + kCodeBytes + i % kPanel * 2, sizeof scale);
      const uint8_t byte = block[place(i, j)];
      out[j] = _cvtsh_ss(scale) * static_cast<float>((is_high(j) ? byte >> 4 : byte & 0x0F) - 8);
    }
  }
  Activations::Form form() const override { return Activations::Form::kCodes; }
  void prepare(Activations& to, int64_t i, const float* x, const float* norm, float eps) const override {
    to.set_codes(i, x, norm, eps);
  }
  void tile(int64_t panel, const Activations& from, int64_t t, float* out) const override {
    const uint8_t* blocks = blocks_.data() + panel * groups_ * kBlockBytes;
    const int height = from.tile_height(t);
    for (int done = 0; done < height; done += kRowsAtOnce) {
      by_height<Kernel>(std::min(kRowsAtOnce, height - done), blocks, groups_, from, t, done, out + done * kPanel);
    }
  }
  int64_t bytes() const override { return blocks_.bytes(); }

 private:
  static constexpr int64_t kCodeBytes = kGroup * kPanel / 2, kBlockBytes = kCodeBytes + 2 * kPanel;
  static constexpr int kRowsAtOnce = 6;  // four sums each, beside four vectors of codes and two of scales

  template <int R>
  struct Kernel {
    // Rows first .. first + R of tile t.
    static void run(const uint8_t* block, int64_t groups, const Activations& from, int64_t t, int first, float* out) {
      if constexpr (R <= kRowsAtOnce) {
        const int64_t row = from.tile_start(t) + first, height = from.tile_height(t);
        const int32_t* x = from.quads(t) + first;
        __m512 totals[R][2];
#pragma GCC unroll 8
        for (auto& pair : totals) pair[0] = pair[1] = _mm512_setzero_ps();
        for (int64_t group = 0; group < groups; ++group, block += kBlockBytes, x += kGroup / 4 * height) {
          __m512i sums[R][2];
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) {
            sums[r][0] = sums[r][1] = _mm512_set1_epi32(-8 * from.group_sums(row + r)[group]);
          }
          add(block, x, height, sums);
          scale_group(block + kCodeBytes, sums, totals);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512 scale = _mm512_set1_ps(from.scale(row + r));
          _mm512_store_ps(out + r * kPanel, _mm512_mul_ps(totals[r][0], scale));
          _mm512_store_ps(out + r * kPanel + kLanes, _mm512_mul_ps(totals[r][1], scale));
        }
      }
    }
    static inline void add(const uint8_t* codes, const int32_t* x, int64_t height, __m512i (&sums)[R][2]) {
      const __m512i low = _mm512_set1_epi8(0x0F);
#pragma GCC unroll 4
      for (int pair = 0; pair < kGroup / 8; ++pair, codes += 128, x += 2 * height) {
        const __m512i both0 = _mm512_load_si512(codes), both1 = _mm512_load_si512(codes + 64);
        const __m512i even0 = _mm512_and_si512(both0, low), even1 = _mm512_and_si512(both1, low);
        const __m512i odd0 = _mm512_and_si512(_mm512_srli_epi16(both0, 4), low);
        const __m512i odd1 = _mm512_and_si512(_mm512_srli_epi16(both1, 4), low);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512i even = _mm512_set1_epi32(x[r]), odd = _mm512_set1_epi32(x[height + r]);
          add_products(sums[r][0], even0, even);
          add_products(sums[r][1], even1, even);
          add_products(sums[r][0], odd0, odd);
          add_products(sums[r][1], odd1, odd);
        }
      }
    }
    static inline void scale_group(const uint8_t* scales, const __m512i (&sums)[R][2], __m512 (&totals)[R][2]) {
      const auto* halves = reinterpret_cast<const __m256i*>(scales);
      const __m512 scale0 = _mm512_cvtph_ps(_mm256_load_si256(halves));
      const __m512 scale1 = _mm512_cvtph_ps(_mm256_load_si256(halves + 1));
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        totals[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][0]), scale0, totals[r][0]);
        totals[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][1]), scale1, totals[r][1]);
      }
    }
  };

  bool pack_row(int64_t i, const float* row) override {
    bool is_sound = true;
    for (int64_t group = 0; group < groups_; ++group) {
      const float* from = row + group * kGroup;
      const int64_t count = k - group * kGroup;
      const __m512 low = _mm512_maskz_loadu_ps(first_lanes(count), from);
      const __m512 high = _mm512_maskz_loadu_ps(first_lanes(std::max<int64_t>(count - kLanes, 0)), from + kLanes);
      // The first value of largest magnitude becomes -8, the one code that has no opposite.
      const auto half_of = [&](int64_t j) { return j ? high : low; };
      const __m512 absmax = _mm512_set1_ps(largest_magnitude(kGroup, half_of));
      const uint32_t at = _mm512_cmpeq_ps_mask(_mm512_abs_ps(low), absmax) |
                          uint32_t{_mm512_cmpeq_ps_mask(_mm512_abs_ps(high), absmax)} << kLanes;
      const float extreme = at ? from[__builtin_ctz(at)] : std::numeric_limits<float>::quiet_NaN();
      const uint16_t scale = _cvtss_sh(extreme / -8.0f, _MM_FROUND_TO_NEAREST_INT);
      const float step = _cvtsh_ss(scale);
      is_sound = is_sound && std::isfinite(step);
      uint8_t* block = blocks_.data() + block_of(i, group);
      std::memcpy(block + kCodeBytes + i % kPanel * 2, &scale, sizeof scale);
      alignas(16) uint32_t quads[kGroup / 4];
      to_codes(low, step, quads);
      to_codes(high, step, quads + 4);
      for (int pair = 0; pair < kGroup / 8; ++pair) {
        const uint32_t both = quads[2 * pair] | quads[2 * pair + 1] << 4;
        std::memcpy(block + place(i, 8 * pair), &both, sizeof both);
      }
    }
    return is_sound;
  }
  // 16 codes, 8 added, as four words. A step of 0 or of no number gives zeros.
  static void to_codes(__m512 values, float step, uint32_t* quads) {
    const __m512 inverse = _mm512_set1_ps(step != 0.0f && std::isfinite(step) ? 1.0f / step : 0.0f);
    const __m512i eight = _mm512_set1_epi32(8);
    const __m512i code = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)), eight);
    const __m512i held = _mm512_min_epi32(_mm512_max_epi32(code, _mm512_setzero_si512()), _mm512_set1_epi32(15));
    _mm_store_si128(reinterpret_cast<__m128i*>(quads), _mm512_cvtepi32_epi8(held));
  }

  // Where the block of row i's inputs [32 group, 32 group + 32) begins.
  int64_t block_of(int64_t i, int64_t group) const { return (i / kPanel * groups_ + group) * kBlockBytes; }
  static bool is_high(int64_t j) { return j / 4 % 2 == 1; }
  static int64_t place(int64_t i, int64_t j) { return j % kGroup / 8 * 128 + i % kPanel * 4 + j % 4; }

  int64_t groups_;
  Buffer<uint8_t> blocks_;
};

}  // namespace

std::unique_ptr<Weight> make_weight(const char* format, int64_t n, int64_t k) {
  const std::string name = format;
  if (name == "float32") return std::make_unique<FloatWeight<float>>(n, k);
  if (name == "bfloat16") return std::make_unique<FloatWeight<bf16>>(n, k);
  if (name == "int8") return std::make_unique<Int8Weight>(n, k);
  if (name == "int4") return std::make_unique<Int4Weight>(n, k);
  throw std::invalid_argument("unknown weight format " + name);
}

}  // namespace penstock

#include "pool.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <stdexcept>

namespace penstock {
namespace {

constexpr int kFieldBits = 20;
constexpr uint64_t kFieldMask = (uint64_t{1} << kFieldBits) - 1;
constexpr uint32_t kEpochMask = (uint32_t{1} << 24) - 1;
// Between two products of a step a helper spins, which takes well under a microsecond to end; after about
// this many pauses (tens of microseconds) it sleeps, so that an idle engine costs nothing.
constexpr int kSpins = 2000;
// How long the caller spins for a chunk in progress before it offers its core to whoever holds the chunk up.
constexpr int kSpinsBeforeYield = 4000;

uint64_t pack(uint32_t epoch, int64_t chunks) {
  return (uint64_t{epoch} << (2 * kFieldBits)) | (static_cast<uint64_t>(chunks) << kFieldBits);
}
uint32_t epoch_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> (2 * kFieldBits)); }
int64_t chunks_of(uint64_t ticket) { return static_cast<int64_t>((ticket >> kFieldBits) & kFieldMask); }
int64_t next_of(uint64_t ticket) { return static_cast<int64_t>(ticket & kFieldMask); }

}  // namespace

Pool::Pool(int threads) {
  if (threads < 1) throw std::invalid_argument("a pool needs at least one thread");
  for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
}

Pool::~Pool() {
  stopping_.store(true);
  published_.fetch_add(1);
  published_.notify_all();
  for (auto& helper : helpers_) helper.join();
}

void Pool::share(int64_t chunks, Call call, void* context) {
  if (chunks > static_cast<int64_t>(kFieldMask)) throw std::length_error("too many chunks in one job");
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  epoch_ = (epoch_ + 1) & kEpochMask;
  ticket_.store(pack(epoch_, chunks), std::memory_order_release);
  published_.fetch_add(1, std::memory_order_release);
  published_.notify_all();
  int64_t chunk;
  while (take(epoch_, chunk)) {
    call(context, chunk);
    done_.fetch_add(1, std::memory_order_acq_rel);
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != chunks; ++spins) {
    if (spins < kSpinsBeforeYield) {
      _mm_pause();
    } else {
      sched_yield();
    }
  }
}

bool Pool::take(uint32_t epoch, int64_t& chunk) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (epoch_of(ticket) == epoch && next_of(ticket) < chunks_of(ticket)) {
    if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) {
      chunk = next_of(ticket);
      return true;
    }
  }
  return false;
}

void Pool::help() {
  uint32_t seen = 0;
  while (true) {
    uint32_t published = published_.load(std::memory_order_acquire);
    for (int spins = 0; published == seen && spins < kSpins; ++spins) {
      _mm_pause();
      published = published_.load(std::memory_order_acquire);
    }
    if (published == seen) {
      published_.wait(seen, std::memory_order_acquire);
      continue;
    }
    seen = published;
    if (stopping_.load()) return;
    const uint32_t epoch = epoch_of(ticket_.load(std::memory_order_acquire));
    // Valid as long as this epoch has chunks to take, and take() hands out none of any other.
    const Call call = call_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    int64_t chunk;
    while (take(epoch, chunk)) {
      call(context, chunk);
      done_.fetch_add(1, std::memory_order_acq_rel);
    }
  }
}

}  // namespace penstock

#include "pool.h"

#include <immintrin.h>
#include <sched.h>

#include <stdexcept>

namespace penstock {
namespace {

// Between two products of a step a helper spins, which takes well under a microsecond to end; after about
// this many pauses (tens of microseconds) it sleeps, so that an idle engine costs nothing.
constexpr int kSpins = 2000;
// How long the caller spins for a chunk in progress before it offers its core to whoever holds the chunk up.
constexpr int kSpinsBeforeYield = 4000;

}  // namespace

Pool::Pool(int threads) {
  if (threads < 1) throw std::invalid_argument("a pool needs at least one thread");
  try {
    for (int i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
  } catch (...) {  // the system gives no more threads: those that run would otherwise end the process
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  stopping_.store(true);
  published_.fetch_add(1);
  published_.notify_all();
  for (auto& helper : helpers_) helper.join();
}

void Pool::share(const Job& job) {
  job_ = job;
  done_.store(0, std::memory_order_relaxed);
  ticket_.store(static_cast<uint64_t>(job.chunks) << 32, std::memory_order_release);
  published_.fetch_add(1, std::memory_order_release);
  published_.notify_all();
  work_on_job();
  for (int spins = 0; done_.load(std::memory_order_acquire) != job.chunks; ++spins) {
    if (spins < kSpinsBeforeYield) {
      _mm_pause();
    } else {
      sched_yield();
    }
  }
}

// Which job a chunk is taken from does not matter to who takes it: it is the one that runs, and it runs until
// the chunk is done.
void Pool::work_on_job() {
  uint64_t ticket = ticket_.load(std::memory_order_relaxed);
  while (static_cast<uint32_t>(ticket) < ticket >> 32) {
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_relaxed)) {
      continue;
    }
    job_.call(job_.context, static_cast<uint32_t>(ticket));
    done_.fetch_add(1, std::memory_order_acq_rel);
    ticket = ticket_.load(std::memory_order_relaxed);
  }
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
    work_on_job();
  }
}

}  // namespace penstock

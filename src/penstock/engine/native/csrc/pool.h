// Threads that share the chunks of one job at a time.
//
// Unlike an OpenMP team, the caller does not wait for helpers that never came: a helper whose core is taken
// by another process costs the job nothing but its help. Chunks are handed out one by one; the caller waits
// only for chunks that somebody has begun.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace penstock {

class Pool {
 public:
  // Starts `threads` - 1 helpers; the caller of run() is the remaining thread.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls work(i) once for every i in [0, chunks), on any thread, and returns when all calls are over.
  // One run at a time, from one thread; `work` must not throw.
  template <class Work>
  void run(int64_t chunks, Work&& work) {
    if (chunks <= 1 || helpers_.empty()) {
      for (int64_t i = 0; i < chunks; ++i) work(i);
      return;
    }
    share(chunks, [](void* context, int64_t i) { (*static_cast<std::remove_reference_t<Work>*>(context))(i); },
          &work);
  }

 private:
  using Call = void (*)(void*, int64_t);

  void share(int64_t chunks, Call call, void* context);
  bool take(uint32_t epoch, int64_t& chunk);
  void help();

  // epoch (24 bits) | number of chunks (20) | next chunk (20): one word, so that a chunk can only be taken
  // from the job it belongs to.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<uint32_t> published_{0};  // what helpers sleep on
  std::atomic<int64_t> done_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<bool> stopping_{false};
  uint32_t epoch_ = 0;
  std::vector<std::thread> helpers_;
};

}  // namespace penstock

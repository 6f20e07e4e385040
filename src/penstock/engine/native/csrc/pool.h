// Threads that share the chunks of one job at a time.
//
// Unlike an OpenMP team, the caller does not wait for helpers that never came: a helper whose core is taken
// by another process costs the job nothing but its help. Chunks are handed out one by one; the caller waits
// only for chunks that somebody has begun.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace penstock {

class Pool {
 public:
  // Starts `threads` - 1 helpers; the caller of run() is the remaining thread. Throws std::system_error if the
  // system refuses one.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls work(i) once for every i in [0, chunks), on any thread, and returns when all calls are over.
  // One run at a time; `chunks` is less than 2^32. What leaves `work` as an exception ends the process.
  template <class Work>
  void run(int64_t chunks, Work&& work) {
    if (chunks <= 1 || helpers_.empty()) {
      for (int64_t i = 0; i < chunks; ++i) work(i);
      return;
    }
    share({chunks, [](void* context, int64_t i) noexcept { (*static_cast<std::remove_reference_t<Work>*>(context))(i); },
           &work});
  }

 private:
  struct Job {
    int64_t chunks = 0;
    void (*call)(void*, int64_t) noexcept = nullptr;
    void* context = nullptr;
  };

  void share(const Job& job);
  void work_on_job();
  void help();
  void stop();

  // Number of chunks (32 bits) | next chunk (32): a thread takes a chunk by adding 1.
  std::atomic<uint64_t> ticket_{0};
  Job job_;  // read by who has taken a chunk, and not written before all that were taken are done
  std::atomic<int64_t> done_{0};
  std::atomic<uint32_t> published_{0};  // what helpers sleep on
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace penstock

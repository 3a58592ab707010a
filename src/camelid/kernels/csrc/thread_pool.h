// Threads that sleep between jobs, but for some moments. A job's result must not depend on how it is cut into pieces.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>

namespace camelid {

// Weight bytes that one thread gets through while another wakes up; less is not worth sharing.
inline constexpr std::size_t kBytesPerPiece = 64 * 1024;

// Elements that are worth sharing between threads; a multiple of every width_factor.
inline constexpr std::size_t kElementsPerPiece = 16 * 1024;

class ThreadPool {
public:
    // The pool of this process; a forked child gets its own, because threads don't survive a fork.
    static ThreadPool &instance();

    // Call work(begin, end) for pieces of [0, count) of at most `piece` each, on up to `num_threads` threads, the
    // calling one included, and return when all are done. A pool that is busy with another caller's job lets the new
    // caller do its work alone.
    void run(std::size_t count, std::size_t piece, std::size_t num_threads,
             const std::function<void(std::size_t, std::size_t)> &work);

private:
    struct Job;

    ThreadPool() = default;
    void serve();
    void start_helpers(std::size_t wanted);

    std::mutex running_;  // held by the caller whose job is in the pool
    std::mutex mutex_;    // guards what follows
    std::condition_variable job_posted_;
    std::condition_variable helper_left_;
    Job *job_ = nullptr;
    std::size_t num_helpers_ = 0;
    std::atomic<std::size_t> num_posted_{0};
};

}  // namespace camelid

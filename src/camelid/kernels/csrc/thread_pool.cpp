#include "thread_pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace camelid {

struct ThreadPool::Job {
    const std::function<void(std::size_t, std::size_t)> &work;
    const std::size_t count, piece;
    std::atomic<std::size_t> next{0};
    std::size_t seats;                       // helpers that may still join
    std::atomic<std::size_t> num_inside{0};  // helpers at work

    void take_pieces() {
        for (;;) {
            const std::size_t begin = next.fetch_add(piece, std::memory_order_relaxed);
            if (begin >= count) return;
            work(begin, std::min(begin + piece, count));
        }
    }
};

namespace {

// Never destroyed: sleeping threads may outlive static destruction.
std::atomic<ThreadPool *> pool{nullptr};

// How long a thread stays awake for what will most likely come at once. To wake it costs 10 to 20 µs.
constexpr auto kAwake = std::chrono::microseconds(20);

// Leaves the core to its other thread, and the memory alone, for a moment.
inline void pause() {
#ifdef CAMELID_X86
    __builtin_ia32_pause();
#endif
}

// Whether it came while this thread was awake.
template <typename Condition>
bool came_soon(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + kAwake;
    do {
        for (int i = 0; i < 16; ++i) {
            if (condition()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

}  // namespace

ThreadPool &ThreadPool::instance() {
    ThreadPool *current = pool.load(std::memory_order_acquire);
    if (current != nullptr) return *current;
    auto *fresh = new ThreadPool;
    if (!pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) {
        delete fresh;
        return *current;
    }
#ifndef _WIN32
    static std::once_flag forgets_on_fork;
    std::call_once(forgets_on_fork, [] { pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); }); });
#endif
    return *fresh;
}

void ThreadPool::run(std::size_t count, std::size_t piece, std::size_t num_threads,
                     const std::function<void(std::size_t, std::size_t)> &work) {
    piece = std::max<std::size_t>(piece, 1);
    const std::size_t num_pieces = (count + piece - 1) / piece;
    const std::size_t helpers_wanted = std::max<std::size_t>(std::min(num_threads, num_pieces), 1) - 1;
    std::unique_lock<std::mutex> running(running_, std::defer_lock);
    if (helpers_wanted == 0 || !running.try_lock()) {
        if (count > 0) work(0, count);
        return;
    }
    Job job{work, count, piece, {0}, helpers_wanted};
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        start_helpers(helpers_wanted);
        job_ = &job;
        num_posted_.fetch_add(1, std::memory_order_release);
    }
    if (helpers_wanted == 1)
        job_posted_.notify_one();
    else
        job_posted_.notify_all();
    job.take_pieces();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    lock.unlock();
    const auto is_done = [&] { return job.num_inside.load(std::memory_order_acquire) == 0; };
    if (came_soon(is_done)) return;
    lock.lock();
    helper_left_.wait(lock, is_done);
}

void ThreadPool::start_helpers(std::size_t wanted) {
    try {
        for (; num_helpers_ < wanted; ++num_helpers_) std::thread(&ThreadPool::serve, this).detach();
    } catch (const std::system_error &) {
        // The system gives no more threads: the work gets done with those that there are.
    }
}

void ThreadPool::serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        const auto is_wanted = [&] { return job_ != nullptr && job_->seats > 0; };
        if (!is_wanted()) {
            const std::size_t seen = num_posted_.load(std::memory_order_relaxed);
            lock.unlock();
            came_soon([&] { return num_posted_.load(std::memory_order_relaxed) != seen; });
            lock.lock();
        }
        job_posted_.wait(lock, is_wanted);
        Job &job = *job_;
        --job.seats;
        ++job.num_inside;
        lock.unlock();
        job.take_pieces();
        lock.lock();
        if (--job.num_inside == 0) helper_left_.notify_one();
    }
}

}  // namespace camelid

#include "float_calls.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "attention.h"
#include "block_kernels.h"
#include "elementwise.h"
#include "paged_attention.h"
#include "product.h"
#include "thread_pool.h"

namespace camelid {
namespace {

// Queries of one task at most: each takes the trouble of reading the keys again, and too few tasks leave threads idle.
constexpr std::size_t kQueriesPerTask = 128;

// Tasks are taken so many times by each thread, if there are enough: a thread knows what it will read next within a piece.
constexpr std::size_t kPiecesPerThread = 8;

// Those that this processor can run.
std::vector<const AttentionKernels *> attention_kernels() {
    std::vector<const AttentionKernels *> found;
#ifdef CAMELID_X86
    for (const InstructionSet &set : instruction_sets())
        for (const AttentionKernels *kernels : {&kAttentionAvx512, &kAttentionAvx2})
            if (std::string(set.name) == kernels->name) found.push_back(kernels);
#endif
    return found;
}

const AttentionKernels &find_attention(const std::string &set) {
    for (const AttentionKernels *kernels : attention_kernels())
        if (set == kernels->name) return *kernels;
    throw std::invalid_argument("attention on " + set);
}

const PagedAttentionKernels &find_paged_attention(const std::string &set) {
#ifdef CAMELID_X86
    for (const PagedAttentionKernels *kernels : {&kPagedAttentionAvx512, &kPagedAttentionAvx2})
        if (set == kernels->name) return *kernels;
#endif
    throw std::invalid_argument("paged attention on " + set);
}

const ElementwiseKernels &find_elementwise(const std::string &set) {
#ifdef CAMELID_X86
    for (const ElementwiseKernels *kernels : {&kElementwiseAvx512, &kElementwiseAvx2})
        if (set == kernels->name) return *kernels;
#endif
    throw std::invalid_argument("element by element on " + set);
}

const ProductKernels &find_product(const std::string &set) {
#ifdef CAMELID_X86
    for (const ProductKernels *kernels : {&kProductAvx512, &kProductAvx2})
        if (set == kernels->name) return *kernels;
#endif
    throw std::invalid_argument("products on " + set);
}

Rows rows_at(const Address &address) { return {reinterpret_cast<float *>(address.first), address.second}; }

CachedRows cached_at(const CachedAddress &address) {
    return {reinterpret_cast<const void *>(address.first), reinterpret_cast<const float *>(address.second)};
}

Matrix matrix_at(const MatrixAddress &address) {
    return {floats(std::get<0>(address)), std::get<1>(address), std::get<2>(address)};
}

AttentionShape attention_shape(std::uintptr_t starts, const Sizes &sizes, float scale) {
    const auto [num_sequences, num_heads, num_key_heads, head_dim] = sizes;
    return {reinterpret_cast<const std::int64_t *>(starts), num_sequences, num_heads, num_key_heads, head_dim, scale};
}

}  // namespace

std::map<std::string, std::size_t> attention_dim_factors() {
    std::map<std::string, std::size_t> factors;
    for (const AttentionKernels *kernels : attention_kernels()) factors[kernels->name] = kernels->dim_factor;
    return factors;
}

void attention(const std::string &set, std::uintptr_t starts, const Sizes &sizes, float scale, const Address &q,
               const Address &k, const Address &v, const Address &out, std::size_t num_threads) {
    const AttentionKernels &kernels = find_attention(set);
    const AttentionShape shape = attention_shape(starts, sizes, scale);
    ThreadPool::instance().run(shape.num_tasks(), 1, num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.forward(shape, rows_at(q), rows_at(k), rows_at(v), rows_at(out), begin, end);
    });
}

void attention_gradients(const std::string &set, std::uintptr_t starts, const Sizes &sizes, float scale,
                         const Address &q, const Address &k, const Address &v, const Address &out_grad,
                         const Address &q_grad, const Address &k_grad, const Address &v_grad, std::size_t num_threads) {
    const AttentionKernels &kernels = find_attention(set);
    const AttentionShape shape = attention_shape(starts, sizes, scale);
    ThreadPool::instance().run(shape.num_tasks(), 1, num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.backward(shape, rows_at(q), rows_at(k), rows_at(v), rows_at(out_grad), rows_at(q_grad), rows_at(k_grad),
                         rows_at(v_grad), begin, end);
    });
}

void store_rows(const Address &new_keys, const Address &new_values, std::uintptr_t slots, std::size_t count,
                std::uintptr_t keys, std::uintptr_t values, std::size_t width, std::size_t num_threads) {
    const auto *places = reinterpret_cast<const std::int64_t *>(slots);
    const std::size_t piece = std::max<std::size_t>(kElementsPerPiece / width, 1);
    ThreadPool::instance().run(count, piece, num_threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t t = begin; t < end; ++t) {
            const std::size_t to = static_cast<std::size_t>(places[t]) * width;
            std::copy_n(rows_at(new_keys).values + t * new_keys.second, width, reinterpret_cast<float *>(keys) + to);
            std::copy_n(rows_at(new_values).values + t * new_values.second, width, reinterpret_cast<float *>(values) + to);
        }
    });
}

void paged_attention(const std::string &set, std::uintptr_t sequences, std::uintptr_t tables, const PagedSizes &sizes,
                     float scale, const std::pair<int, std::int64_t> &reach, const Address &q, const CachedAddress &keys,
                     const CachedAddress &values, const Address &out, std::size_t num_threads) {
    const PagedAttentionKernels &kernels = find_paged_attention(set);
    const auto [num_sequences, block_size, num_heads, num_key_heads, head_dim] = sizes;
    const PagedAttentionShape shape{reinterpret_cast<const PagedSequence *>(sequences),
                                    num_sequences,
                                    reinterpret_cast<const std::int64_t *>(tables),
                                    block_size,
                                    num_heads,
                                    num_key_heads,
                                    head_dim,
                                    scale,
                                    static_cast<Reach>(reach.first),
                                    reach.second};
    std::vector<PagedTask> tasks;
    std::size_t num_rows = 0;  // keys and values that all tasks read
    for (std::size_t s = 0; s < num_sequences; ++s) {
        const auto queries = static_cast<std::size_t>(shape.sequences[s].queries);
        for (std::size_t first = 0; first < queries; first += kQueriesPerTask) {
            const std::size_t count = std::min(kQueriesPerTask, queries - first);
            for (std::size_t head = 0; head < num_key_heads; ++head) tasks.push_back({s, first, count, head});
            num_rows += (static_cast<std::size_t>(shape.sequences[s].cached) + first + count) * num_key_heads;
        }
    }
    const std::size_t bytes = num_rows * head_dim * 2 * sizeof(float);
    const std::size_t worth_sharing = tasks.size() * kBytesPerPiece / std::max<std::size_t>(bytes, 1);
    const std::size_t piece = std::max({worth_sharing, tasks.size() / (kPiecesPerThread * num_threads), std::size_t{1}});
    const CachedRows cached_keys = cached_at(keys), cached_values = cached_at(values);
    ThreadPool::instance().run(tasks.size(), piece, num_threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t task = begin; task < end; ++task)
            kernels.attend(shape, tasks[task], task + 1 < end ? &tasks[task + 1] : nullptr, rows_at(q).values, q.second,
                           cached_keys, cached_values, rows_at(out).values, out.second);
    });
}

void rms_norm(const std::string &set, std::uintptr_t x, std::uintptr_t weight, float eps, std::uintptr_t out,
              std::size_t rows, std::size_t width, std::size_t num_threads) {
    const ElementwiseKernels &kernels = find_elementwise(set);
    const std::size_t piece = std::max<std::size_t>(kElementsPerPiece / width, 1);
    ThreadPool::instance().run(rows, piece, num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.rms_norm(floats(x), floats(weight), eps, width, floats(out), begin, end);
    });
}

void rms_norm_gradients(const std::string &set, std::uintptr_t x, std::uintptr_t weight, float eps,
                        std::uintptr_t out_grad, std::uintptr_t x_grad, std::uintptr_t weight_grads, std::size_t rows,
                        std::size_t width, std::size_t num_threads) {
    const ElementwiseKernels &kernels = find_elementwise(set);
    const std::size_t piece = std::max<std::size_t>(kElementsPerPiece / (width * kNormRows), 1);
    ThreadPool::instance().run((rows + kNormRows - 1) / kNormRows, piece, num_threads,
                               [&](std::size_t begin, std::size_t end) {
                                   kernels.rms_norm_gradients(floats(x), floats(weight), floats(out_grad), eps, rows,
                                                              width, floats(x_grad), floats(weight_grads), begin, end);
                               });
}

void swiglu(const std::string &set, std::uintptr_t gate, std::uintptr_t up, std::uintptr_t out, std::size_t count,
            std::size_t num_threads) {
    const ElementwiseKernels &kernels = find_elementwise(set);
    ThreadPool::instance().run(count, kElementsPerPiece, num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.swiglu(floats(gate), floats(up), floats(out), begin, end);
    });
}

void swiglu_gradients(const std::string &set, std::uintptr_t gate, std::uintptr_t up, std::uintptr_t out_grad,
                      std::uintptr_t gate_grad, std::uintptr_t up_grad, std::size_t count, std::size_t num_threads) {
    const ElementwiseKernels &kernels = find_elementwise(set);
    ThreadPool::instance().run(count, kElementsPerPiece, num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.swiglu_gradients(floats(gate), floats(up), floats(out_grad), floats(gate_grad), floats(up_grad), begin,
                                 end);
    });
}

void rotate(const std::string &set, const Address &x, std::uintptr_t cos, std::uintptr_t sin, bool back,
            std::uintptr_t out, std::size_t tokens, std::size_t heads, std::size_t dim, std::size_t num_threads) {
    const ElementwiseKernels &kernels = find_elementwise(set);
    const std::size_t piece = std::max<std::size_t>(kElementsPerPiece / (heads * dim), 1);
    ThreadPool::instance().run(tokens, piece, num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.rotate(rows_at(x).values, x.second, floats(cos), floats(sin), heads, dim, back, floats(out), begin, end);
    });
}

void softmax_shares(const std::string &set, std::uintptr_t x, std::uintptr_t largest, std::uintptr_t totals,
                    std::size_t rows, std::size_t width, std::size_t num_threads) {
    const ElementwiseKernels &kernels = find_elementwise(set);
    const std::size_t piece = std::max<std::size_t>(kElementsPerPiece / width, 1);
    ThreadPool::instance().run(rows, piece, num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.softmax_shares(floats(x), width, floats(largest), floats(totals), begin, end);
    });
}

std::pair<std::vector<float>, std::vector<std::size_t>> greatest(const std::string &set, const Address &x,
                                                                 std::size_t rows, std::size_t width,
                                                                 std::size_t num_threads) {
    const ElementwiseKernels &kernels = find_elementwise(set);
    const std::size_t parts = (width + kElementsPerPiece - 1) / kElementsPerPiece;  // of a row
    const std::size_t piece = std::max<std::size_t>(kElementsPerPiece / width, 1);
    std::vector<float> found(rows * parts);
    std::vector<std::size_t> places(rows * parts);
    ThreadPool::instance().run(rows * parts, piece, num_threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const std::size_t start = i % parts * kElementsPerPiece, count = std::min(kElementsPerPiece, width - start);
            found[i] = kernels.greatest(floats(x.first) + i / parts * x.second + start, count, &places[i]);
            places[i] += start;
        }
    });
    for (std::size_t row = 0; row < rows; ++row) {
        std::size_t best = row * parts;
        for (std::size_t i = best + 1; i < (row + 1) * parts; ++i)
            if (found[i] > found[best] || (std::isnan(found[i]) && !std::isnan(found[best]))) best = i;
        found[row] = found[best];
        places[row] = places[best];
    }
    found.resize(rows);
    places.resize(rows);
    return {found, places};
}

void product(const std::string &set, const std::pair<std::size_t, std::size_t> &rows_and_depth, const MatrixAddress &a,
             const std::vector<FactorAddress> &factors, std::size_t out_row, bool add, std::size_t num_threads) {
    std::vector<ProductFactor> found;
    for (const auto &[b, columns, out] : factors) found.push_back({matrix_at(b), columns, floats(out)});
    multiply(find_product(set), rows_and_depth.first, rows_and_depth.second, matrix_at(a), found, out_row, add,
             num_threads);
}

void gated_product(const std::string &set, const std::pair<std::size_t, std::size_t> &rows_and_depth,
                   const MatrixAddress &x, const MatrixAddress &gate, const MatrixAddress &up, std::size_t width,
                   std::uintptr_t both, std::uintptr_t out, std::size_t num_threads) {
    const std::size_t rows = rows_and_depth.first;
    const std::vector<ProductFactor> factors{{matrix_at(gate), width, floats(both)},
                                             {matrix_at(up), width, floats(both) + width}};
    multiply(find_product(set), rows, rows_and_depth.second, matrix_at(x), factors, 2 * width, false, num_threads);
    const ElementwiseKernels &kernels = find_elementwise(set);
    const std::size_t piece = std::max<std::size_t>(kElementsPerPiece / width, 1);
    ThreadPool::instance().run(rows, piece, num_threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t row = begin; row < end; ++row) {
            const float *gates = floats(both) + row * 2 * width;
            kernels.swiglu(gates, gates + width, floats(out) + row * width, 0, width);
        }
    });
}

}  // namespace camelid

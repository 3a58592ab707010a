// The Python module camelid.kernels._native. Tensors arrive as addresses: camelid/kernels/__init__.py, the only caller,
// checks type, shape and contiguity first. (Exchanging a torch tensor by DLPack costs microseconds, and a decoding step
// makes hundreds of calls.)

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "attention.h"
#include "block_kernels.h"
#include "elementwise.h"
#include "paged_attention.h"
#include "product.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace camelid {
namespace {

// Weight bytes that one thread gets through while another wakes up; less is not worth sharing.
constexpr std::size_t kBytesPerPiece = 64 * 1024;

// Elements that are worth sharing between threads; a multiple of every width_factor.
constexpr std::size_t kElementsPerPiece = 16 * 1024;

// What this processor can run, best first.
const std::vector<InstructionSet> &instruction_sets() {
    static const std::vector<InstructionSet> sets = [] {
        std::vector<InstructionSet> found;
#ifdef CAMELID_X86
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
            if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
                found.push_back(kAvx512);
            found.push_back(kAvx2);
        }
#endif
        found.push_back(kPortable);
        return found;
    }();
    return sets;
}

const BlockKernels &find(const std::string &format, const std::string &set_name) {
    for (const InstructionSet &set : instruction_sets())
        if (set_name == set.name)
            for (std::size_t i = 0; i < set.num_kernels; ++i)
                if (format == set.kernels[i].format) return set.kernels[i];
    throw nb::key_error((format + " on " + set_name).c_str());
}

std::vector<std::string> names_of_instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet &set : instruction_sets()) names.emplace_back(set.name);
    return names;
}

std::map<std::string, std::size_t> block_bytes_of_formats() {
    std::map<std::string, std::size_t> formats;
    for (std::size_t i = 0; i < kPortable.num_kernels; ++i)
        formats[kPortable.kernels[i].format] = kPortable.kernels[i].block_bytes;
    return formats;
}

std::size_t rows_per_piece(const BlockKernels &kernels, std::size_t columns) {
    const std::size_t row_bytes = columns / kBlockSize * kernels.block_bytes;
    return (std::max<std::size_t>(kBytesPerPiece / std::max<std::size_t>(row_bytes, 1), 1) + 7) / 8 * 8;
}

void unpack(const std::string &format, const std::string &set, std::uintptr_t weights, std::uintptr_t out,
            std::size_t rows, std::size_t columns, std::size_t num_threads) {
    const BlockKernels &kernels = find(format, set);
    ThreadPool::instance().run(rows, rows_per_piece(kernels, columns), num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.unpack(reinterpret_cast<const std::uint8_t *>(weights), columns, begin, end,
                       reinterpret_cast<float *>(out));
    });
}

void matmul(const std::string &format, const std::string &set, std::uintptr_t x, std::uintptr_t weights,
            std::uintptr_t out, std::size_t batch, std::size_t rows, std::size_t columns, std::size_t num_threads) {
    const BlockKernels &kernels = find(format, set);
    ThreadPool::instance().run(rows, rows_per_piece(kernels, columns), num_threads, [&](std::size_t begin, std::size_t end) {
        kernels.matmul(reinterpret_cast<const float *>(x), batch, reinterpret_cast<const std::uint8_t *>(weights), rows,
                       columns, begin, end, reinterpret_cast<float *>(out));
    });
}

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
    throw nb::key_error(("attention on " + set).c_str());
}

std::map<std::string, std::size_t> attention_dim_factors() {
    std::map<std::string, std::size_t> factors;
    for (const AttentionKernels *kernels : attention_kernels()) factors[kernels->name] = kernels->dim_factor;
    return factors;
}

using Address = std::pair<std::uintptr_t, std::size_t>;  // of the first row, and floats from one row to the next

Rows rows_at(const Address &address) { return {reinterpret_cast<float *>(address.first), address.second}; }

// num_sequences, num_heads, num_key_heads, head_dim
using Sizes = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t>;

AttentionShape attention_shape(std::uintptr_t starts, const Sizes &sizes, float scale) {
    const auto [num_sequences, num_heads, num_key_heads, head_dim] = sizes;
    return {reinterpret_cast<const std::int64_t *>(starts), num_sequences, num_heads, num_key_heads, head_dim, scale};
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

const PagedAttentionKernels &find_paged_attention(const std::string &set) {
#ifdef CAMELID_X86
    for (const PagedAttentionKernels *kernels : {&kPagedAttentionAvx512, &kPagedAttentionAvx2})
        if (set == kernels->name) return *kernels;
#endif
    throw nb::key_error(("paged attention on " + set).c_str());
}

// Row slots[t] of `keys` and of `values` becomes row t of those that are new.
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

// Queries of one task at most: each takes the trouble of reading the keys again, and too few tasks leave threads idle.
constexpr std::size_t kQueriesPerTask = 128;

// Tasks are taken so many times by each thread, if there are enough: a thread knows what it will read next within a piece.
constexpr std::size_t kPiecesPerThread = 8;

// num_sequences, block_size, num_heads, num_key_heads, head_dim
using PagedSizes = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t, std::size_t>;

using CachedAddress = std::pair<std::uintptr_t, std::uintptr_t>;  // of the numbers, and of their scales or 0

CachedRows cached_at(const CachedAddress &address) {
    return {reinterpret_cast<const void *>(address.first), reinterpret_cast<const float *>(address.second)};
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

const ElementwiseKernels &find_elementwise(const std::string &set) {
#ifdef CAMELID_X86
    for (const ElementwiseKernels *kernels : {&kElementwiseAvx512, &kElementwiseAvx2})
        if (set == kernels->name) return *kernels;
#endif
    throw nb::key_error(("element by element on " + set).c_str());
}

float *floats(std::uintptr_t address) { return reinterpret_cast<float *>(address); }

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

// The greatest of each row, and the first column that has it; of a row with a number that is none, the first such.
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

const ProductKernels &find_product(const std::string &set) {
#ifdef CAMELID_X86
    for (const ProductKernels *kernels : {&kProductAvx512, &kProductAvx2})
        if (set == kernels->name) return *kernels;
#endif
    throw nb::key_error(("products on " + set).c_str());
}

// Of element (0, 0), and the distances to the next row and to the next column.
using MatrixAddress = std::tuple<std::uintptr_t, std::size_t, std::size_t>;

Matrix matrix_at(const MatrixAddress &address) {
    return {floats(std::get<0>(address)), std::get<1>(address), std::get<2>(address)};
}

// A right factor, its columns, and where its product begins.
using FactorAddress = std::tuple<MatrixAddress, std::size_t, std::uintptr_t>;

void product(const std::string &set, const std::pair<std::size_t, std::size_t> &rows_and_depth, const MatrixAddress &a,
             const std::vector<FactorAddress> &factors, std::size_t out_row, bool add, std::size_t num_threads) {
    std::vector<ProductFactor> found;
    for (const auto &[b, columns, out] : factors) found.push_back({matrix_at(b), columns, floats(out)});
    multiply(find_product(set), rows_and_depth.first, rows_and_depth.second, matrix_at(a), found, out_row, add,
             num_threads);
}

// silu(x gateᵀ) ⊙ x upᵀ, both products in one pass over `both`, which has 2 · width columns.
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

// sums = x + y, element by element; `sums` may be one of them.
void add(const float *x, const float *y, float *sums, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) sums[i] = x[i] + y[i];
}

// Rows of `width` floats, those named by ascending `numbers`, close together; `from` and `to` may be one place.
void take_rows(const float *from, const std::int64_t *numbers, std::size_t count, std::size_t width, float *to) {
    for (std::size_t row = 0; row < count; ++row)
        std::memmove(to + row * width, from + static_cast<std::size_t>(numbers[row]) * width, width * sizeof(float));
}

// tokens, hidden size, heads, key/value heads, head dimension, width of the feed-forward layer
using StackSizes = std::tuple<std::size_t, std::size_t, std::size_t, std::size_t, std::size_t, std::size_t>;

// Addresses of each block's nine weights (first norm, queries, keys, values, output, second norm, gate, up, down) and of
// the last norm's, the norms' epsilons, and each block's scale of scores, keys and values in the cache.
using StackBlocks = std::tuple<std::vector<std::uintptr_t>, std::vector<float>, std::vector<float>,
                               std::vector<std::uintptr_t>, std::vector<std::uintptr_t>>;

// A step's place in the cache: sequences, their number, block tables, block size, slots.
using StackPlace = std::tuple<std::uintptr_t, std::size_t, std::uintptr_t, std::size_t, std::uintptr_t>;

// Tokens that are wanted of the last block: their numbers, how many, their sequences as in the place, how many.
using StackWanted = std::tuple<std::uintptr_t, std::size_t, std::uintptr_t, std::size_t>;

constexpr std::size_t kWeightsOfBlock = 9;

// Pre-norm blocks of rotary attention and SwiGLU over one step's tokens.
class Stack {
public:
    // The workspace has 3 · (hidden + heads · dim + key heads · dim + width) + 2 · dim floats for each token.
    Stack(const std::string &set, const StackSizes &sizes, const StackBlocks &blocks, const StackPlace &place,
          std::uintptr_t cos, std::uintptr_t sin, std::uintptr_t workspace, std::size_t num_threads)
        : set_(set), blocks_(blocks), place_(place), num_threads_(num_threads), cos_(cos), sin_(sin) {
        std::tie(tokens_, hidden_, num_heads_, num_key_heads_, dim_, width_) = sizes;
        q_width_ = num_heads_ * dim_, k_width_ = num_key_heads_ * dim_;
        normed_ = floats(workspace), qkv_ = normed_ + tokens_ * hidden_;
        turned_ = qkv_ + tokens_ * (q_width_ + 2 * k_width_), attended_ = turned_ + tokens_ * (q_width_ + k_width_);
        added_ = attended_ + tokens_ * q_width_, both_ = added_ + tokens_ * hidden_;
        gated_ = both_ + tokens_ * 2 * width_, h_ = gated_ + tokens_ * width_, angles_ = h_ + tokens_ * hidden_;
    }

    // All blocks and, where there is one more weight, the last norm; of the wanted tokens into `out`.
    void run(std::uintptr_t x, const StackWanted &wanted, std::uintptr_t out) {
        const std::size_t num_blocks = std::get<2>(blocks_).size(), num_wanted = std::get<1>(wanted);
        const auto &[weights, epsilons, scales, keys, values] = blocks_;
        const StackWanted all{0, tokens_, std::get<0>(place_), std::get<1>(place_)};
        for (std::size_t block = 0; block < num_blocks; ++block)
            run(block, block == 0 ? floats(x) : h_, block + 1 == num_blocks ? wanted : all);
        if (weights.size() > num_blocks * kWeightsOfBlock)
            rms_norm(set_, address(h_), weights.back(), epsilons.back(), out, num_wanted, hidden_, num_threads_);
        else
            std::copy_n(h_, num_wanted * hidden_, floats(out));
    }

private:
    static std::uintptr_t address(const float *values) { return reinterpret_cast<std::uintptr_t>(values); }

    // Of a weight [outputs, inputs], whose transpose is the right factor.
    static MatrixAddress transposed(std::uintptr_t weight, std::size_t inputs) { return {weight, 1, inputs}; }

    // One block: h = x + attention(norm(x)); h + feed_forward(norm(h)) into `h_`, which may be x.
    void run(std::size_t block, const float *x, const StackWanted &wanted) {
        const std::uintptr_t *weights = std::get<0>(blocks_).data() + block * kWeightsOfBlock;
        const float *epsilons = std::get<1>(blocks_).data() + block * 2;
        const std::size_t rows = std::get<1>(wanted);

        rms_norm(set_, address(x), weights[0], epsilons[0], address(normed_), tokens_, hidden_, num_threads_);
        const Address queries = rows == tokens_ ? project_all(block, weights) : project_wanted(block, weights, wanted);
        if (rows == 0) return;
        if (rows != tokens_) {
            take_rows(x, reinterpret_cast<const std::int64_t *>(std::get<0>(wanted)), rows, hidden_, h_);
            x = h_;
        }
        attend(block, queries, wanted);
        product(set_, {rows, q_width_}, {address(attended_), q_width_, 1},
                {{transposed(weights[4], q_width_), hidden_, address(added_)}}, hidden_, false, num_threads_);
        add(x, added_, h_, rows * hidden_);

        rms_norm(set_, address(h_), weights[5], epsilons[1], address(normed_), rows, hidden_, num_threads_);
        gated_product(set_, {rows, hidden_}, {address(normed_), hidden_, 1}, transposed(weights[6], hidden_),
                      transposed(weights[7], hidden_), width_, address(both_), address(gated_), num_threads_);
        product(set_, {rows, width_}, {address(gated_), width_, 1},
                {{transposed(weights[8], width_), hidden_, address(added_)}}, hidden_, false, num_threads_);
        add(h_, added_, h_, rows * hidden_);
    }

    // All tokens' queries, keys and values, side by side; keys and values go to the cache, the queries are returned.
    Address project_all(std::size_t block, const std::uintptr_t *weights) {
        const std::size_t row = q_width_ + 2 * k_width_, turned_row = q_width_ + k_width_;
        product(set_, {tokens_, hidden_}, {address(normed_), hidden_, 1},
                {{transposed(weights[1], hidden_), q_width_, address(qkv_)},
                 {transposed(weights[2], hidden_), k_width_, address(qkv_ + q_width_)},
                 {transposed(weights[3], hidden_), k_width_, address(qkv_ + q_width_ + k_width_)}},
                row, false, num_threads_);
        rotate(set_, {address(qkv_), row}, cos_, sin_, false, address(turned_), tokens_, num_heads_ + num_key_heads_, dim_,
               num_threads_);
        store(block, {address(turned_ + q_width_), turned_row}, {address(qkv_ + q_width_ + k_width_), row});
        return {address(turned_), turned_row};
    }

    // The same with the queries of wanted tokens alone.
    Address project_wanted(std::size_t block, const std::uintptr_t *weights, const StackWanted &wanted) {
        const std::size_t rows = std::get<1>(wanted);
        product(set_, {tokens_, hidden_}, {address(normed_), hidden_, 1},
                {{transposed(weights[2], hidden_), k_width_, address(qkv_)},
                 {transposed(weights[3], hidden_), k_width_, address(qkv_ + k_width_)}},
                2 * k_width_, false, num_threads_);
        rotate(set_, {address(qkv_), 2 * k_width_}, cos_, sin_, false, address(turned_), tokens_, num_key_heads_, dim_,
               num_threads_);
        store(block, {address(turned_), k_width_}, {address(qkv_ + k_width_), 2 * k_width_});
        if (rows == 0) return {0, 0};

        const auto *numbers = reinterpret_cast<const std::int64_t *>(std::get<0>(wanted));
        float *queries = qkv_ + tokens_ * 2 * k_width_, *turned = turned_ + tokens_ * k_width_;
        float *cos = angles_, *sin = angles_ + rows * dim_;
        take_rows(normed_, numbers, rows, hidden_, normed_);
        take_rows(floats(cos_), numbers, rows, dim_, cos);
        take_rows(floats(sin_), numbers, rows, dim_, sin);
        product(set_, {rows, hidden_}, {address(normed_), hidden_, 1},
                {{transposed(weights[1], hidden_), q_width_, address(queries)}}, q_width_, false, num_threads_);
        rotate(set_, {address(queries), q_width_}, address(cos), address(sin), false, address(turned), rows, num_heads_,
               dim_, num_threads_);
        return {address(turned), q_width_};
    }

    void store(std::size_t block, const Address &new_keys, const Address &new_values) {
        store_rows(new_keys, new_values, std::get<4>(place_), tokens_, std::get<3>(blocks_)[block],
                   std::get<4>(blocks_)[block], k_width_, num_threads_);
    }

    void attend(std::size_t block, const Address &queries, const StackWanted &wanted) {
        const auto [numbers, rows, sequences, num_sequences] = wanted;
        const PagedSizes sizes{num_sequences, std::get<3>(place_), num_heads_, num_key_heads_, dim_};
        paged_attention(set_, sequences, std::get<2>(place_), sizes, std::get<2>(blocks_)[block], {0, 0}, queries,
                        {std::get<3>(blocks_)[block], 0}, {std::get<4>(blocks_)[block], 0},
                        {address(attended_), q_width_}, num_threads_);
    }

    const std::string &set_;
    const StackBlocks &blocks_;
    const StackPlace &place_;
    std::size_t num_threads_;
    std::uintptr_t cos_, sin_;
    std::size_t tokens_, hidden_, num_heads_, num_key_heads_, dim_, width_, q_width_, k_width_;
    float *normed_, *qkv_, *turned_, *attended_, *added_, *both_, *gated_, *h_, *angles_;
};

void transformer_stack(const std::string &set, const StackSizes &sizes, const StackBlocks &blocks, const StackPlace &place,
                       const StackWanted &wanted, std::uintptr_t x, std::uintptr_t cos, std::uintptr_t sin,
                       std::uintptr_t workspace, std::uintptr_t out, std::size_t num_threads) {
    Stack(set, sizes, blocks, place, cos, sin, workspace, num_threads).run(x, wanted, out);
}

}  // namespace
}  // namespace camelid

NB_MODULE(_native, module) {
    module.def("instruction_sets", &camelid::names_of_instruction_sets);
    module.def("formats", &camelid::block_bytes_of_formats);
    module.def("unpack", &camelid::unpack, nb::call_guard<nb::gil_scoped_release>());
    module.def("matmul", &camelid::matmul, nb::call_guard<nb::gil_scoped_release>());
    module.def("attention_dim_factors", &camelid::attention_dim_factors);
    module.def("attention", &camelid::attention, nb::call_guard<nb::gil_scoped_release>());
    module.def("attention_gradients", &camelid::attention_gradients, nb::call_guard<nb::gil_scoped_release>());
    module.def("store_rows", &camelid::store_rows, nb::call_guard<nb::gil_scoped_release>());
    module.def("paged_attention", &camelid::paged_attention, nb::call_guard<nb::gil_scoped_release>());
    module.attr("norm_rows") = camelid::kNormRows;
    module.def("rms_norm", &camelid::rms_norm, nb::call_guard<nb::gil_scoped_release>());
    module.def("rms_norm_gradients", &camelid::rms_norm_gradients, nb::call_guard<nb::gil_scoped_release>());
    module.def("swiglu", &camelid::swiglu, nb::call_guard<nb::gil_scoped_release>());
    module.def("swiglu_gradients", &camelid::swiglu_gradients, nb::call_guard<nb::gil_scoped_release>());
    module.def("rotate", &camelid::rotate, nb::call_guard<nb::gil_scoped_release>());
    module.def("softmax_shares", &camelid::softmax_shares, nb::call_guard<nb::gil_scoped_release>());
    module.def("greatest", &camelid::greatest, nb::call_guard<nb::gil_scoped_release>());
    module.def("product", &camelid::product, nb::call_guard<nb::gil_scoped_release>());
    module.def("transformer_stack", &camelid::transformer_stack, nb::call_guard<nb::gil_scoped_release>());
    module.def("gated_product", &camelid::gated_product, nb::call_guard<nb::gil_scoped_release>());
}

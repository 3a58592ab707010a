#include "stack.h"

#include <algorithm>
#include <cstring>

#include "float_calls.h"

namespace camelid {
namespace {

// sums = x + y, element by element; `sums` may be one of them.
void add(const float *x, const float *y, float *sums, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) sums[i] = x[i] + y[i];
}

// Rows of `width` floats, those named by ascending `numbers`, close together; `from` and `to` may be one place.
void take_rows(const float *from, const std::int64_t *numbers, std::size_t count, std::size_t width, float *to) {
    for (std::size_t row = 0; row < count; ++row)
        std::memmove(to + row * width, from + static_cast<std::size_t>(numbers[row]) * width, width * sizeof(float));
}

constexpr std::size_t kWeightsOfBlock = 9;

// Pre-norm blocks of rotary attention and SwiGLU over one step's tokens.
class Stack {
public:
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

}  // namespace

void transformer_stack(const std::string &set, const StackSizes &sizes, const StackBlocks &blocks, const StackPlace &place,
                       const StackWanted &wanted, std::uintptr_t x, std::uintptr_t cos, std::uintptr_t sin,
                       std::uintptr_t workspace, std::uintptr_t out, std::size_t num_threads) {
    Stack(set, sizes, blocks, place, cos, sin, workspace, num_threads).run(x, wanted, out);
}

}  // namespace camelid

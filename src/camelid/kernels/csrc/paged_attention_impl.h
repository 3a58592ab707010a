// Attention over a paged cache for one instruction set, on the vectors of vector_impl.h and the products of
// product_impl.h (scores) and attention_impl.h (values).
//
// The keys are taken in tiles of kTileKeys, at positions that are multiples of it, with a running maximum (Milakov and
// Gimelshein 2018, arXiv 1805.02867). A score is summed as products are, the rest key after key and tile after tile, and
// what a query must not see adds exact zeros (to what is finite): its bits depend neither on the queries beside it, nor on
// how a prompt was cut, nor on the threads.

constexpr std::size_t kTileKeys = 64, kCacheLineBytes = 64;
static_assert(kTileKeys % kLanes == 0);

typedef std::int8_t Bytes __attribute__((vector_size(kLanes)));

// One token's keys or values of one head.
struct CachedRow {
    const float *floats;
    const std::int8_t *bytes;
    float scale;

    template <bool kBytes>
    Vector at(std::size_t d) const {
        if constexpr (kBytes) {
            Bytes b;
            std::memcpy(&b, bytes + d, sizeof b);
            return __builtin_convertvector(b, Vector) * scale;
        } else {
            return load(floats + d);
        }
    }
};

// One head's keys and values of a sequence.
struct Head {
    const PagedAttentionShape &shape;
    const std::int64_t *table;
    std::size_t key_head;

    Head(const PagedAttentionShape &shape, const PagedTask &task)
        : shape(shape), table(shape.tables + shape.sequences[task.sequence].first_block), key_head(task.key_head) {}

    std::size_t number_of(std::size_t position) const {
        const auto block = static_cast<std::size_t>(table[position / shape.block_size]);
        return (block * shape.block_size + position % shape.block_size) * shape.num_key_heads + key_head;
    }

    const float *floats(CachedRows rows, std::size_t position) const {
        return static_cast<const float *>(rows.numbers) + number_of(position) * shape.head_dim;
    }

    CachedRow row(CachedRows rows, std::size_t position) const {
        const std::size_t number = number_of(position), first = number * shape.head_dim;
        if (rows.scales == nullptr) return {static_cast<const float *>(rows.numbers) + first, nullptr, 1};
        return {nullptr, static_cast<const std::int8_t *>(rows.numbers) + first, rows.scales[number]};
    }
};

// A head's rows lie too far apart for the processor to foresee them.
inline void prefetch_row(const void *row, std::size_t bytes) {
    for (std::size_t byte = 0; byte < bytes; byte += kCacheLineBytes)
        __builtin_prefetch(static_cast<const char *>(row) + byte, 0, 2);
}

template <bool kBytes>
void copy_rows(const Head &head, CachedRows rows, std::size_t position, std::size_t count, std::size_t end, float *to) {
    const std::size_t dim = head.shape.head_dim;
    for (std::size_t j = 0; j < count; ++j) {
        if (const std::size_t later = position + kTileKeys + j; later < end) {
            const CachedRow row = head.row(rows, later);
            prefetch_row(kBytes ? static_cast<const void *>(row.bytes) : row.floats, dim * (kBytes ? 1 : sizeof(float)));
        }
        const CachedRow row = head.row(rows, position + j);
        for (std::size_t d = 0; d < dim; d += kLanes) store(to + j * dim + d, row.template at<kBytes>(d));
    }
}

// The state of a query under one head: weights and attended values so far are relative to the largest score so far.
struct Running {
    float largest, total;
};

// Replace the scores [low, high) of a tile by their weights and all others by zeros; the values attended so far are scaled
// to the new largest score.
inline void weigh(float *scores, std::size_t low, std::size_t high, std::size_t columns, float scale, Running &running,
                  float *attended, std::size_t dim) {
    const float none = -std::numeric_limits<float>::infinity();
    std::fill(scores, scores + low, none);
    std::fill(scores + high, scores + columns, none);
    Vector most = load(scores);
    for (std::size_t j = kLanes; j < columns; j += kLanes) most = larger(most, load(scores + j));
    const float before = running.largest;
    running.largest = std::max(before, largest(most));
    const Vector offset = broadcast(running.largest);
    Vector total{};
    for (std::size_t j = 0; j < columns; j += kLanes) {
        const Vector score = load(scores + j);
        const Vector weight = score == none ? Vector{} : exponential((score - offset) * scale);
        store(scores + j, weight);
        total += weight;
    }
    if (before != running.largest) {  // also where one of them is not a number
        const float kept = before == none ? 0.0f : exponential(broadcast((before - running.largest) * scale))[0];
        running.total *= kept;
        for (std::size_t d = 0; d < dim; d += kLanes) store(attended + d, load(attended + d) * kept);
    }
    running.total += sum(total);
}

// The keys and values are read where they lie, or `kCopied` to where a tile's rows lie side by side.
template <bool kBytes, bool kCopied>
void attend_paged(const PagedAttentionShape &shape, const PagedTask &task, const PagedTask *next, const float *q,
                  std::size_t q_row, CachedRows keys, CachedRows values, float *out, std::size_t out_row) {
    const PagedSequence &sequence = shape.sequences[task.sequence];
    const Head head(shape, task), next_head(shape, next == nullptr ? task : *next);
    const std::size_t dim = shape.head_dim, group = shape.num_heads / shape.num_key_heads;
    const std::size_t stride = kCopied ? dim : shape.num_key_heads * dim;
    const std::size_t rows = task.num_queries * group, first_head = task.key_head * group;
    const std::size_t first_row = static_cast<std::size_t>(sequence.start) + task.first_query;
    const std::size_t first_position = task.first_position(shape);

    float *queries = scratch(rows * (2 * dim + kTileKeys) + 2 * kTileKeys * dim), *attended = queries + rows * dim;
    float *scores = attended + rows * dim, *tile_keys = scores + rows * kTileKeys;
    float *tile_values = tile_keys + kTileKeys * dim;
    thread_local std::vector<Running> state;
    state.assign(rows, {-std::numeric_limits<float>::infinity(), 0.0f});
    std::fill_n(attended, rows * dim, 0.0f);
    for (std::size_t i = 0; i < task.num_queries; ++i)
        std::copy_n(q + (first_row + i) * q_row + first_head * dim, group * dim, queries + i * group * dim);

    const std::size_t end = task.end(shape), first_tile = task.first_key(shape) / kTileKeys * kTileKeys;
    const std::size_t next_end = next == nullptr ? 0 : next->end(shape);
    const std::size_t next_tile = next == nullptr ? 0 : next->first_key(shape) / kTileKeys * kTileKeys;
    // What the same place of the next tile will ask for, of this task or of the next one's first.
    const auto later = [&](CachedRows rows, std::size_t tile, std::size_t j) {
        if (tile + kTileKeys + j < end) return head.floats(rows, tile + kTileKeys + j);
        return next_tile + j < next_end ? next_head.floats(rows, next_tile + j) : nullptr;
    };
    for (std::size_t tile = first_tile; tile < end; tile += kTileKeys) {
        const std::size_t count = std::min(kTileKeys, end - tile), columns = whole_vectors(count);
        if constexpr (kCopied) {
            copy_rows<kBytes>(head, keys, tile, count, end, tile_keys);
            copy_rows<kBytes>(head, values, tile, count, end, tile_values);
        }
        // Queries before the tile see nothing of it.
        const std::size_t unseeing = tile > first_position ? (tile - first_position) * group : 0;
        for (std::size_t j = 0; j < count; j += kLines) {  // what is behind the last key is computed and hidden
            const float *lines = kCopied ? tile_keys + j * dim : head.floats(keys, tile + j);
            const float *later_lines = kCopied ? nullptr : later(keys, tile, j);
            for (std::size_t row = unseeing; row < rows; row += kLineRows)
                multiply_lines<kLineRows>(std::min(kLineRows, rows - row), {queries + row * dim, dim, 1}, lines,
                                          later_lines == nullptr ? lines : later_lines, stride, dim,
                                          scores + row * kTileKeys + j, kTileKeys, false);
        }
        for (std::size_t row = unseeing; row < rows; ++row) {
            const std::size_t position = first_position + row / group;
            const auto seen_from = static_cast<std::size_t>(shape.first_key(static_cast<std::int64_t>(position)));
            const std::size_t high = std::min(position + 1 - tile, count);
            const std::size_t low = std::min(std::max(seen_from, tile) - tile, high);
            if (low < high)
                weigh(scores + row * kTileKeys, low, high, columns, shape.scale, state[row], attended + row * dim, dim);
            else
                std::fill_n(scores + row * kTileKeys, columns, 0.0f);
        }
        for (std::size_t j = 0, length; j < count; j += length) {
            length = kCopied ? count : std::min(count - j, shape.block_size - (tile + j) % shape.block_size);
            for (std::size_t i = j; !kCopied && i < j + length; i += kLines)
                if (const float *rows = later(values, tile, i))
                    for (std::size_t row = 0; row < kLines; ++row) prefetch_row(rows + row * stride, dim * sizeof(float));
            multiply<true>(rows - unseeing, dim, length, {scores + unseeing * kTileKeys + j, kTileKeys, 1},
                           kCopied ? tile_values : head.floats(values, tile + j), stride, attended + unseeing * dim, dim);
        }
    }
    for (std::size_t row = 0; row < rows; ++row) {
        float *to = out + (first_row + row / group) * out_row + (first_head + row % group) * dim;
        const float inverse = 1.0f / state[row].total;
        for (std::size_t d = 0; d < dim; d += kLanes) store(to + d, load(attended + row * dim + d) * inverse);
    }
}

void attend(const PagedAttentionShape &shape, const PagedTask &task, const PagedTask *next, const float *q,
            std::size_t q_row, CachedRows keys, CachedRows values, float *out, std::size_t out_row) {
    if (keys.scales != nullptr)
        attend_paged<true, true>(shape, task, next, q, q_row, keys, values, out, out_row);
    else if (shape.block_size % kLines != 0)
        attend_paged<false, true>(shape, task, next, q, q_row, keys, values, out, out_row);
    else
        attend_paged<false, false>(shape, task, next, q, q_row, keys, values, out, out_row);
}

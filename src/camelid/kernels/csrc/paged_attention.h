// Causal attention of new tokens over the keys and values of a paged cache, read where they lie; float32 or 8 bits.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace camelid {

// One sequence's tokens of a step: rows [start, start + queries) of the queries, behind `cached` tokens.
struct PagedSequence {
    std::int64_t start, queries, cached, first_block;  // its block table begins at tables[first_block]
};

// How far back a query sees: everything; or itself and the size − 1 before it; or its own chunk of `size` positions.
enum class Reach : int { kAll, kWindow, kChunk };

// Keys or values of one layer. Row s of head h: `dim` numbers from (s * num_key_heads + h) * dim on; those of 8 bits times
// the scale at s * num_key_heads + h.
struct CachedRows {
    const void *numbers;
    const float *scales;  // null: the numbers are floats
};

struct PagedAttentionShape {
    const PagedSequence *sequences;
    std::size_t num_sequences;
    const std::int64_t *tables;
    std::size_t block_size, num_heads, num_key_heads, head_dim;
    float scale;
    Reach reach;
    std::int64_t reach_size;

    std::int64_t first_key(std::int64_t position) const {
        switch (reach) {
            case Reach::kWindow: return position >= reach_size ? position - reach_size + 1 : 0;
            case Reach::kChunk: return position / reach_size * reach_size;
            default: return 0;
        }
    }
};

// Some queries of one sequence under one key/value head.
struct PagedTask {
    std::size_t sequence, first_query, num_queries, key_head;

    std::size_t first_position(const PagedAttentionShape &shape) const {
        return static_cast<std::size_t>(shape.sequences[sequence].cached) + first_query;
    }
    // The keys that its queries see.
    std::size_t first_key(const PagedAttentionShape &shape) const {
        return static_cast<std::size_t>(shape.first_key(static_cast<std::int64_t>(first_position(shape))));
    }
    std::size_t end(const PagedAttentionShape &shape) const { return first_position(shape) + num_queries; }
};

struct PagedAttentionKernels {
    const char *name;        // of the instruction set
    std::size_t dim_factor;  // head_dim must be a multiple of it

    // Row t of `q` and `out` begins at values + t * row. `next` is what this thread will attend to next, if it is known.
    void (*attend)(const PagedAttentionShape &shape, const PagedTask &task, const PagedTask *next, const float *q,
                   std::size_t q_row, CachedRows keys, CachedRows values, float *out, std::size_t out_row);
};

#ifdef CAMELID_X86
extern const PagedAttentionKernels kPagedAttentionAvx2;
extern const PagedAttentionKernels kPagedAttentionAvx512;
#endif

}  // namespace camelid

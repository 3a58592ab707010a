// Attention for one instruction set, on the vectors of vector_impl.h.
//
// Sequences are short in training (documents, dialogues), so that a block of queries sees all its keys at once and the
// softmax needs no running maximum. The backward pass computes the probabilities again, and the sum
// Σ p·dp of a query from them: it reads neither the output nor a saved normaliser.

// Queries that are taken together: more would compute more of the upper triangle, fewer would read the keys more often.
constexpr std::size_t kQueries = 32;

inline float largest(Vector a) {
    float found = a[0];
    for (std::size_t i = 1; i < kLanes; ++i) found = std::max(found, a[i]);
    return found;
}

// A matrix read element by element, in any order.
struct Elements {
    const float *values;
    std::size_t row, column;  // distances
};

template <int M, int N, bool kAdd>
inline void multiply_tile(Elements a, const float *b, std::size_t b_row, float *c, std::size_t c_row, std::size_t depth) {
    Vector sums[M][N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) sums[m][n] = kAdd ? load(c + m * c_row + n * kLanes) : Vector{};
    for (std::size_t k = 0; k < depth; ++k) {
        Vector row[N];
        for (int n = 0; n < N; ++n) row[n] = load(b + k * b_row + n * kLanes);
        for (int m = 0; m < M; ++m) {
            const Vector factor = broadcast(a.values[m * a.row + k * a.column]);
            for (int n = 0; n < N; ++n) sums[m][n] += factor * row[n];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) store(c + m * c_row + n * kLanes, sums[m][n]);
}

template <int N, bool kAdd>
void multiply_columns(std::size_t rows, Elements a, const float *b, std::size_t b_row, float *c, std::size_t c_row,
                      std::size_t depth) {
    std::size_t m = 0;
    for (; m + 6 <= rows; m += 6)
        multiply_tile<6, N, kAdd>({a.values + m * a.row, a.row, a.column}, b, b_row, c + m * c_row, c_row, depth);
    const Elements rest{a.values + m * a.row, a.row, a.column};
    switch (rows - m) {
        case 5: return multiply_tile<5, N, kAdd>(rest, b, b_row, c + m * c_row, c_row, depth);
        case 4: return multiply_tile<4, N, kAdd>(rest, b, b_row, c + m * c_row, c_row, depth);
        case 3: return multiply_tile<3, N, kAdd>(rest, b, b_row, c + m * c_row, c_row, depth);
        case 2: return multiply_tile<2, N, kAdd>(rest, b, b_row, c + m * c_row, c_row, depth);
        case 1: return multiply_tile<1, N, kAdd>(rest, b, b_row, c + m * c_row, c_row, depth);
    }
}

// c = a b, or c += a b; `columns` of b and c is a multiple of kLanes.
template <bool kAdd>
void multiply(std::size_t rows, std::size_t columns, std::size_t depth, Elements a, const float *b, std::size_t b_row,
              float *c, std::size_t c_row) {
    std::size_t n = 0;
    // A single row needs more columns to keep the processor busy; a number's bits do not hang on the tile it is in.
    for (; rows == 1 && n + 4 * kLanes <= columns; n += 4 * kLanes)
        multiply_tile<1, 4, kAdd>(a, b + n, b_row, c + n, c_row, depth);
    if (rows == 1 && n + 3 * kLanes == columns) return multiply_tile<1, 3, kAdd>(a, b + n, b_row, c + n, c_row, depth);
    for (; n + 2 * kLanes <= columns; n += 2 * kLanes)
        multiply_columns<2, kAdd>(rows, a, b + n, b_row, c + n, c_row, depth);
    if (n < columns) multiply_columns<1, kAdd>(rows, a, b + n, b_row, c + n, c_row, depth);
}

inline std::size_t whole_vectors(std::size_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// to[d][t] = rows[t][d], with zeros where a row of `to` goes on past the last token.
inline void transpose(const float *rows, std::size_t row_stride, std::size_t tokens, std::size_t dim, float *to) {
    const std::size_t padded = whole_vectors(tokens);
    for (std::size_t d = 0; d < dim; ++d) {
        for (std::size_t t = 0; t < tokens; ++t) to[d * padded + t] = rows[t * row_stride + d];
        for (std::size_t t = tokens; t < padded; ++t) to[d * padded + t] = 0;
    }
}

// exp(scale · (score − largest score)) of the first `visible` scores, zeros up to `columns`; their sum.
inline float unnormalised_softmax(float *scores, std::size_t visible, std::size_t columns, float scale) {
    for (std::size_t j = visible; j < whole_vectors(visible); ++j) scores[j] = scores[0];
    Vector most = load(scores);
    for (std::size_t j = kLanes; j < visible; j += kLanes) most = larger(most, load(scores + j));
    // Subtracted first: of huge scores the rounding of a product with the scale is huge too, and may pass 0.
    const Vector offset = broadcast(largest(most));
    for (std::size_t j = 0; j < visible; j += kLanes) store(scores + j, exponential((load(scores + j) - offset) * scale));
    std::fill(scores + visible, scores + columns, 0.0f);
    Vector total{};
    for (std::size_t j = 0; j < visible; j += kLanes) total += load(scores + j);
    return sum(total);
}

inline float *scratch(std::size_t floats) {
    thread_local std::vector<float> memory;
    if (memory.size() < floats) memory.resize(floats);
    return memory.data();
}

struct Task {
    std::size_t first, tokens, key_head, first_head, end_head;

    Task(const AttentionShape &shape, std::size_t number) {
        const std::size_t sequence = number / shape.num_key_heads, group = shape.num_heads / shape.num_key_heads;
        first = static_cast<std::size_t>(shape.starts[sequence]);
        tokens = static_cast<std::size_t>(shape.starts[sequence + 1]) - first;
        key_head = number % shape.num_key_heads;
        first_head = key_head * group;
        end_head = first_head + group;
    }
};

void forward(const AttentionShape &shape, Rows q, Rows k, Rows v, Rows out, std::size_t begin, std::size_t end) {
    const std::size_t dim = shape.head_dim;
    for (std::size_t number = begin; number < end; ++number) {
        const Task task(shape, number);
        const std::size_t padded = whole_vectors(task.tokens);
        float *keys = scratch((dim + kQueries) * padded), *probs = keys + dim * padded;
        transpose(k.at(task.first, task.key_head, dim), k.row_stride, task.tokens, dim, keys);
        const float *values = v.at(task.first, task.key_head, dim);
        for (std::size_t head = task.first_head; head < task.end_head; ++head)
            for (std::size_t i = 0; i < task.tokens; i += kQueries) {
                const std::size_t queries = std::min(kQueries, task.tokens - i), seen = i + queries;
                const float *query = q.at(task.first + i, head, dim);
                float *attended = out.at(task.first + i, head, dim), sums[kQueries];
                multiply<false>(queries, whole_vectors(seen), dim, {query, q.row_stride, 1}, keys, padded, probs, padded);
                for (std::size_t m = 0; m < queries; ++m)
                    sums[m] = unnormalised_softmax(probs + m * padded, i + m + 1, whole_vectors(seen), shape.scale);
                multiply<false>(queries, dim, seen, {probs, padded, 1}, values, v.row_stride, attended, out.row_stride);
                for (std::size_t m = 0; m < queries; ++m)
                    for (std::size_t d = 0; d < dim; d += kLanes) {
                        float *place = attended + m * out.row_stride + d;
                        store(place, load(place) * (1.0f / sums[m]));
                    }
            }
    }
}

void backward(const AttentionShape &shape, Rows q, Rows k, Rows v, Rows out_grad, Rows q_grad, Rows k_grad, Rows v_grad,
              std::size_t begin, std::size_t end) {
    const std::size_t dim = shape.head_dim;
    for (std::size_t number = begin; number < end; ++number) {
        const Task task(shape, number);
        const std::size_t padded = whole_vectors(task.tokens);
        float *keys = scratch(2 * (dim + kQueries) * padded), *values = keys + dim * padded;
        float *probs = values + dim * padded, *grads = probs + kQueries * padded;
        const float *key_rows = k.at(task.first, task.key_head, dim);
        transpose(key_rows, k.row_stride, task.tokens, dim, keys);
        transpose(v.at(task.first, task.key_head, dim), v.row_stride, task.tokens, dim, values);
        float *key_grads = k_grad.at(task.first, task.key_head, dim);
        float *value_grads = v_grad.at(task.first, task.key_head, dim);
        for (std::size_t t = 0; t < task.tokens; ++t) {
            std::fill_n(key_grads + t * k_grad.row_stride, dim, 0.0f);
            std::fill_n(value_grads + t * v_grad.row_stride, dim, 0.0f);
        }
        for (std::size_t head = task.first_head; head < task.end_head; ++head)
            for (std::size_t i = 0; i < task.tokens; i += kQueries) {
                const std::size_t queries = std::min(kQueries, task.tokens - i), seen = i + queries;
                const std::size_t columns = whole_vectors(seen);
                const float *query = q.at(task.first + i, head, dim), *up = out_grad.at(task.first + i, head, dim);
                multiply<false>(queries, columns, dim, {query, q.row_stride, 1}, keys, padded, probs, padded);
                multiply<false>(queries, columns, dim, {up, out_grad.row_stride, 1}, values, padded, grads, padded);
                for (std::size_t m = 0; m < queries; ++m) {
                    float *p = probs + m * padded, *g = grads + m * padded;
                    const float inverse = 1.0f / unnormalised_softmax(p, i + m + 1, columns, shape.scale);
                    Vector pull{};
                    for (std::size_t j = 0; j < columns; j += kLanes) {
                        store(p + j, load(p + j) * inverse);
                        pull += load(p + j) * load(g + j);
                    }
                    const float mean = sum(pull);
                    for (std::size_t j = 0; j < columns; j += kLanes)
                        store(g + j, load(p + j) * (load(g + j) - mean) * shape.scale);
                }
                multiply<false>(queries, dim, seen, {grads, padded, 1}, key_rows, k.row_stride,
                                q_grad.at(task.first + i, head, dim), q_grad.row_stride);
                multiply<true>(seen, dim, queries, {grads, 1, padded}, query, q.row_stride, key_grads, k_grad.row_stride);
                multiply<true>(seen, dim, queries, {probs, 1, padded}, up, out_grad.row_stride, value_grads,
                               v_grad.row_stride);
            }
    }
}

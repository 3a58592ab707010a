// RMSNorm, SwiGLU, rotary embedding, softmax and the greatest for one instruction set, on the vectors of vector_impl.h.

inline float inverse_root_mean_square(const float *x, std::size_t width, float eps) {
    Vector squares{};
    for (std::size_t i = 0; i < width; i += kLanes) squares += load(x + i) * load(x + i);
    return 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
}

void rms_norm(const float *x, const float *weight, float eps, std::size_t width, float *out, std::size_t begin,
              std::size_t end) {
    for (std::size_t row = begin; row < end; ++row) {
        const float *from = x + row * width;
        const float r = inverse_root_mean_square(from, width, eps);
        for (std::size_t i = 0; i < width; i += kLanes) store(out + row * width + i, load(from + i) * r * load(weight + i));
    }
}

// With u = weight · dy: dx = r · u − x · r³ · mean(u · x), and d weight = Σ dy · x · r over the rows.
void rms_norm_gradients(const float *x, const float *weight, const float *out_grad, float eps, std::size_t rows,
                        std::size_t width, float *x_grad, float *weight_grads, std::size_t begin, std::size_t end) {
    for (std::size_t block = begin; block < end; ++block) {
        float *weight_grad = weight_grads + block * width;
        std::fill_n(weight_grad, width, 0.0f);
        for (std::size_t row = block * kNormRows; row < std::min(rows, (block + 1) * kNormRows); ++row) {
            const float *from = x + row * width, *up = out_grad + row * width;
            const float r = inverse_root_mean_square(from, width, eps);
            Vector products{};
            for (std::size_t i = 0; i < width; i += kLanes) {
                const Vector pulled = load(up + i) * load(from + i);
                products += pulled * load(weight + i);
                store(weight_grad + i, load(weight_grad + i) + pulled * r);
            }
            const float pull = r * r * r * (sum(products) / static_cast<float>(width));
            for (std::size_t i = 0; i < width; i += kLanes)
                store(x_grad + row * width + i, load(weight + i) * load(up + i) * r - load(from + i) * pull);
        }
    }
}

// 1 / (1 + e^-x), without overflow.
inline Vector sigmoid(Vector x) {
    const Vector small = exponential(x < 0.0f ? x : -x);
    return (x < 0.0f ? small : broadcast(1.0f)) / (1.0f + small);
}

void swiglu(const float *gate, const float *up, float *out, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; i += kLanes) {
        const Vector g = load(gate + i);
        store(out + i, g * sigmoid(g) * load(up + i));
    }
}

void swiglu_gradients(const float *gate, const float *up, const float *out_grad, float *gate_grad, float *up_grad,
                      std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; i += kLanes) {
        const Vector g = load(gate + i), s = sigmoid(g), dy = load(out_grad + i);
        store(gate_grad + i, dy * load(up + i) * s * (1.0f + g * (1.0f - s)));
        store(up_grad + i, dy * g * s);
    }
}

void rotate(const float *x, std::size_t x_row, const float *cos, const float *sin, std::size_t heads, std::size_t dim,
            bool back, float *out, std::size_t begin, std::size_t end) {
    const std::size_t half = dim / 2;
    const float sign = back ? -1.0f : 1.0f;
    for (std::size_t token = begin; token < end; ++token) {
        const float *c = cos + token * dim, *s = sin + token * dim;
        for (std::size_t head = 0; head < heads; ++head)
            for (std::size_t i = 0; i < half; i += kLanes) {
                const std::size_t at = std::min(i, half - kLanes);  // the last vector may repeat some of the one before
                const float *from = x + token * x_row + head * dim + at;
                float *to = out + (token * heads + head) * dim + at;
                const Vector a = load(from), b = load(from + half);
                store(to, a * load(c + at) + b * (load(s + at) * sign));
                store(to + half, b * load(c + half + at) + a * (load(s + half + at) * sign));
            }
    }
}

void softmax_shares(float *x, std::size_t width, float *largests, float *totals, std::size_t begin, std::size_t end) {
    constexpr std::size_t kPart = 32 * kLanes;  // that is summed by itself: a long sum would round too often
    const std::size_t whole = width / kLanes * kLanes;
    for (std::size_t row = begin; row < end; ++row) {
        float *values = x + row * width, most = values[0], rest = 0;
        Vector most_of_each = broadcast(most);
        for (std::size_t i = 0; i < whole; i += kLanes) most_of_each = larger(load(values + i), most_of_each);
        for (std::size_t i = 0; i < kLanes; ++i) most = std::max(most, most_of_each[i]);
        for (std::size_t i = whole; i < width; ++i) most = std::max(most, values[i]);
        Vector total{};
        for (std::size_t part = 0; part < whole; part += kPart) {
            Vector subtotal{};
            for (std::size_t i = part; i < std::min(part + kPart, whole); i += kLanes) {
                const Vector share = exponential(load(values + i) - most);
                store(values + i, share);
                subtotal += share;
            }
            total += subtotal;
        }
        for (std::size_t i = whole; i < width; ++i) {
            values[i] = exponential(broadcast(values[i] - most))[0];
            rest += values[i];
        }
        largests[row] = most;
        totals[row] = sum(total) + rest;
    }
}

float greatest(const float *x, std::size_t count, std::size_t *place) {
    constexpr std::size_t kAtOnce = 4;  // vectors: one comparison need not wait for the one before
    constexpr std::size_t kStep = kAtOnce * kLanes;
    float most = x[0];
    bool is_number = most == most;
    *place = 0;
    Vector most_of_each[kAtOnce];
    Integers step_of_each[kAtOnce] = {}, unordered[kAtOnce] = {};
    for (Vector &values : most_of_each) values = broadcast(most);
    const std::size_t steps = count / kStep;
    for (std::size_t step = 0; step < steps; ++step)
        for (std::size_t j = 0; j < kAtOnce; ++j) {
            const Vector values = load(x + step * kStep + j * kLanes);
            const Integers is_more = values > most_of_each[j];
            most_of_each[j] = is_more ? values : most_of_each[j];
            step_of_each[j] = is_more ? Integers{} + static_cast<std::int32_t>(step) : step_of_each[j];
            unordered[j] |= values != values;
        }
    for (std::size_t i = 0; i < kStep; ++i) {
        const std::size_t j = i / kLanes, lane = i % kLanes, at = step_of_each[j][lane] * kStep + i;
        const float value = most_of_each[j][lane];
        is_number = is_number && !unordered[j][lane];
        // What equals x[0] leaves the place at 0, whatever `at` is then.
        if (value > most || (value == most && at < *place)) most = value, *place = at;
    }
    for (std::size_t i = steps * kStep; i < count; ++i) {
        is_number = is_number && x[i] == x[i];
        if (x[i] > most) most = x[i], *place = i;
    }
    if (is_number) return most;
    *place = std::find_if(x, x + count, [](float value) { return value != value; }) - x;
    return std::numeric_limits<float>::quiet_NaN();
}

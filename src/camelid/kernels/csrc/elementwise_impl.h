// RMSNorm and SwiGLU for one instruction set, on the vectors of vector_impl.h.

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

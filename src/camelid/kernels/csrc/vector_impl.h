// Vectors of kLanes floats, for one instruction set: included by a file that defines kLanes and is compiled with that
// set's flags. They are those of GCC and Clang, so that one text serves every set.

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef std::int32_t Integers __attribute__((vector_size(4 * kLanes)));

inline Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
inline void store(float *to, Vector a) { *reinterpret_cast<Vector *>(to) = a; }
inline Vector broadcast(float a) { return a - Vector{}; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// The elements of a and b, end to end, with these numbers.
inline Vector interleave(Vector a, Vector b, Integers numbers) {
#ifdef __clang__
    Vector chosen;
    for (std::size_t i = 0; i < kLanes; ++i)
        chosen[i] = static_cast<std::size_t>(numbers[i]) < kLanes ? a[numbers[i]] : b[numbers[i] - kLanes];
    return chosen;
#else
    return __builtin_shuffle(a, b, numbers);
#endif
}

inline float sum(Vector a) {
    float total = 0;
    for (std::size_t i = 0; i < kLanes; ++i) total += a[i];
    return total;
}

// e^x for x ≤ 0, within 2 ulp (Cephes' expf: Cody-Waite reduction and a polynomial of degree 6); e^-87 at the least.
// What is not a number stays none.
inline Vector exponential(Vector x) {
    x = x < -87.0f ? broadcast(-87.0f) : x;
    const Vector magic = broadcast(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer
    const Vector n = (x * 1.44269504088896341f + magic) - magic;
    const Vector r = x - n * 0.693359375f - n * -2.12194440e-4f;
    Vector p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const Vector y = p * (r * r) + r + 1.0f;
    const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
    Vector power;
    std::memcpy(&power, &exponent, sizeof power);
    return y * power;
}

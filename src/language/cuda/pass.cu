// What lies between the matrix products of a forward pass on a CUDA device: what src/language/kernel.rs does in
// main memory, with the library's exponential and error function.
//
// Matrices are rows one behind the other. Where a row's values need each other, 32 threads, a warp, share it and
// add up with shuffles; no block of threads ever waits for itself. So the file is also plain C++ once a few names
// are defined, and tests/device.rs runs it on the processor.

typedef unsigned int u32;
typedef unsigned long long u64;

// Threads of a block of threads; the caller's launches have as many, and as many rows a block as it has warps where
// a warp has a row.
#define THREADS 256
#define ALL 0xffffffffu
#ifndef INFINITY
#define INFINITY __uint_as_float(0x7f800000u)
#define NAN __uint_as_float(0x7fffffffu)
#endif

__device__ inline float sum_of_warp(float x) {
    for (int far = 16; far > 0; far /= 2) {
        x += __shfl_xor_sync(ALL, x, far);
    }
    return x;
}

__device__ inline u32 warp_row() {
    return blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
}

// x += bias, row by row
extern "C" __global__ void __launch_bounds__(THREADS)
add_bias(float *x, const float *bias, u32 width) {
    x += (u64)blockIdx.x * width;
    for (u32 at = threadIdx.x; at < width; at += THREADS) {
        x[at] += bias[at];
    }
}

// x += bias + other
extern "C" __global__ void __launch_bounds__(THREADS)
add_bias_and(float *x, const float *bias, const float *other, u32 width) {
    x += (u64)blockIdx.x * width;
    other += (u64)blockIdx.x * width;
    for (u32 at = threadIdx.x; at < width; at += THREADS) {
        x[at] += bias[at] + other[at];
    }
}

// x += other
extern "C" __global__ void __launch_bounds__(THREADS)
add(float *x, const float *other, u32 width) {
    x += (u64)blockIdx.x * width;
    other += (u64)blockIdx.x * width;
    for (u32 at = threadIdx.x; at < width; at += THREADS) {
        x[at] += other[at];
    }
}

// x = activation(x + bias): 0 is GELU, 1 GELU with a hyperbolic tangent, 2 the positive part.
extern "C" __global__ void __launch_bounds__(THREADS)
bias_activation(float *x, const float *bias, u32 width, u32 activation) {
    x += (u64)blockIdx.x * width;
    for (u32 at = threadIdx.x; at < width; at += THREADS) {
        float value = x[at] + bias[at];
        if (activation == 0) {
            value = 0.5f * value * (1.0f + erff(value * 0.70710678f));
        } else if (activation == 1) {
            float inner = 0.7978846f * (value + 0.044715f * value * value * value);
            value = 0.5f * value * (1.0f + tanhf(inner));
        } else {
            // Not fmaxf, which makes a number of what is none.
            value = value < 0.0f ? 0.0f : value;
        }
        x[at] = value;
    }
}

// x = silu(x) * other
extern "C" __global__ void __launch_bounds__(THREADS)
silu_times(float *x, const float *other, u32 width) {
    x += (u64)blockIdx.x * width;
    other += (u64)blockIdx.x * width;
    for (u32 at = threadIdx.x; at < width; at += THREADS) {
        x[at] = x[at] / (1.0f + expf(-x[at])) * other[at];
    }
}

// Layer normalization of every row, a warp a row.
extern "C" __global__ void __launch_bounds__(THREADS)
layer_norm(float *x, const float *weight, const float *bias, u32 rows, u32 width, float epsilon) {
    u32 row = warp_row(), lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    x += (u64)row * width;
    float sum = 0.0f;
    for (u32 at = lane; at < width; at += 32) {
        sum += x[at];
    }
    float mean = sum_of_warp(sum) / (float)width;
    float squares = 0.0f;
    for (u32 at = lane; at < width; at += 32) {
        float value = x[at] - mean;
        squares += value * value;
    }
    float scale = 1.0f / sqrtf(sum_of_warp(squares) / (float)width + epsilon);
    for (u32 at = lane; at < width; at += 32) {
        x[at] = (x[at] - mean) * scale * weight[at] + bias[at];
    }
}

// Root-mean-square normalization of every row of x, to out, a warp a row.
extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm(float *out, const float *x, const float *weight, u32 rows, u32 width, float epsilon) {
    u32 row = warp_row(), lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    x += (u64)row * width;
    out += (u64)row * width;
    float squares = 0.0f;
    for (u32 at = lane; at < width; at += 32) {
        squares += x[at] * x[at];
    }
    float scale = 1.0f / sqrtf(sum_of_warp(squares) / (float)width + epsilon);
    for (u32 at = lane; at < width; at += 32) {
        out[at] = x[at] * scale * weight[at];
    }
}

// Turns pairs of a head's values, half a head apart, by the angles of its row's position.
extern "C" __global__ void __launch_bounds__(THREADS)
rotate(float *x, const u32 *positions, const float *cosines, const float *sines, u32 width, u32 half) {
    x += (u64)blockIdx.x * width;
    cosines += (u64)positions[blockIdx.x] * half;
    sines += (u64)positions[blockIdx.x] * half;
    for (u32 at = threadIdx.x; at < width / 2; at += THREADS) {
        u32 angle = at % half;
        float *pair = x + at / half * 2 * half + angle;
        float a = pair[0], b = pair[half];
        pair[0] = a * cosines[angle] - b * sines[angle];
        pair[half] = b * cosines[angle] + a * sines[angle];
    }
}

// Of every row of logits the negative logarithm of its target's probability, and 1 where the target is the most
// likely, else 0; a warp a row. A row with a value that is none or infinite has no loss; neither has one whose
// target is beyond the row.
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy(float *out, const float *logits, const u32 *targets, u32 rows, u32 width) {
    u32 row = warp_row(), lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    logits += (u64)row * width;
    u32 target = targets[row];
    // The first of the largest, and a sum that is no number where a value is none.
    float top = -INFINITY, none = 0.0f;
    u32 best = width;
    for (u32 at = lane; at < width; at += 32) {
        float value = logits[at];
        none += value * 0.0f;
        if (value > top) {
            top = value;
            best = at;
        }
    }
    for (int far = 16; far > 0; far /= 2) {
        float other = __shfl_xor_sync(ALL, top, far);
        u32 other_best = __shfl_xor_sync(ALL, best, far);
        if (other > top || (other == top && other_best < best)) {
            top = other;
            best = other_best;
        }
    }
    float sum = 0.0f;
    for (u32 at = lane; at < width; at += 32) {
        sum += expf(logits[at] - top);
    }
    sum = sum_of_warp(sum);
    none = sum_of_warp(none);
    if (lane == 0) {
        float own = target < width ? logits[target] : NAN;
        out[2 * (u64)row] = logf(sum) + (top - own) + none;
        out[2 * (u64)row + 1] = best == target ? 1.0f : 0.0f;
    }
}

// The mean of a sequence's rows, of length sqrt(width), a warp a sequence. `offsets` says where each begins, and
// where the last ends.
extern "C" __global__ void __launch_bounds__(THREADS)
pool(float *out, const float *x, const u32 *offsets, u32 sequences, u32 width) {
    u32 sequence = warp_row(), lane = threadIdx.x % 32;
    if (sequence >= sequences) {
        return;
    }
    out += (u64)sequence * width;
    u32 first = offsets[sequence], end = offsets[sequence + 1];
    float squares = 0.0f;
    for (u32 at = lane; at < width; at += 32) {
        float sum = 0.0f;
        for (u32 row = first; row < end; row++) {
            sum += x[(u64)row * width + at];
        }
        squares += sum * sum;
        out[at] = sum;
    }
    float length = sqrtf(sum_of_warp(squares));
    // Not fmaxf, which makes a number of what is none.
    float scale = sqrtf((float)width) / (length < 1.17549435e-38f ? 1.17549435e-38f : length);
    for (u32 at = lane; at < width; at += 32) {
        out[at] *= scale;
    }
}

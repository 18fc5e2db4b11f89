// Attention within each of the sequences that are packed in a matrix of tokens, on a CUDA device.
//
// A thread has a query, or LANES threads share one, each with PART of the head's values; it walks along the keys and
// keeps the softmax as it goes (Milakov and Gimelshein 2018), so that no matrix of scores is held and nothing is
// padded. All queries of a warp are of one sequence: they read the same key at once, which is one access to memory.
// Plain C++ where a few names are defined, as pass.cu is.
//
// The caller defines HEAD, values a head, and LANES, a power of two.

typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define ALL 0xffffffffu
#define PART (HEAD / LANES)
#define QUERIES (WARP / LANES)

// `to = PART values from there`
__device__ inline void load(float *to, const float *from) {
#if PART % 4 == 0
#pragma unroll
    for (int i = 0; i < PART / 4; i++) {
        float4 four = ((const float4 *)from)[i];
        to[4 * i] = four.x;
        to[4 * i + 1] = four.y;
        to[4 * i + 2] = four.z;
        to[4 * i + 3] = four.w;
    }
#else
#pragma unroll
    for (int i = 0; i < PART; i++) {
        to[i] = from[i];
    }
#endif
}

// A block of threads is a warp, blockIdx.y a head. `tiles` has three numbers for blockIdx.x: the first token of a
// sequence, its tokens, and the first of up to QUERIES of them. With a window a token sees no later one, and so many
// earlier ones, itself included; without (0), all. Keys and values of fewer heads serve several queries.
extern "C" __global__ void __launch_bounds__(WARP)
attention(float *out, const float *q, const float *k, const float *v, const u32 *tiles, u32 heads, u32 key_heads,
          float scale, u32 window) {
    const u32 *tile = tiles + 3 * (u64)blockIdx.x;
    u32 first = tile[0], len = tile[1], begin = tile[2];
    u32 lane = threadIdx.x % LANES, at = begin + threadIdx.x / LANES;
    u32 head = blockIdx.y, key_head = head / (heads / key_heads);
    u64 width = (u64)heads * HEAD, key_width = (u64)key_heads * HEAD;
    // A thread without a query computes another's.
    u64 own = (first + (at < len ? at : begin)) * width + head * HEAD + lane * PART;
    u64 other = first * key_width + key_head * HEAD + lane * PART;

    float query[PART], row[PART], sum[PART];
    load(query, q + own);
#pragma unroll
    for (int i = 0; i < PART; i++) {
        query[i] *= scale;
        sum[i] = 0.0f;
    }
    // Below every score but that of a product that has overflowed, which has no weight.
    float top = -3.402823466e38f, total = 0.0f;
    // What any query of the tile sees.
    u32 low = 0, high = len;
    if (window > 0) {
        low = begin + 1 > window ? begin + 1 - window : 0;
        high = begin + QUERIES < len ? begin + QUERIES : len;
    }
    for (u32 key = low; key < high; key++) {
        load(row, k + other + key * key_width);
        float four[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < PART; i++) {
            four[i % 4] += query[i] * row[i];
        }
        float score = (four[0] + four[1]) + (four[2] + four[3]);
#pragma unroll
        for (int far = LANES / 2; far > 0; far /= 2) {
            score += __shfl_xor_sync(ALL, score, far);
        }
        load(row, v + other + key * key_width);
        if (window > 0 && (key > at || key + window <= at)) {
            continue;
        }
        if (score > top) {
            float keep = expf(top - score);
            total *= keep;
#pragma unroll
            for (int i = 0; i < PART; i++) {
                sum[i] *= keep;
            }
            top = score;
        }
        float weight = expf(score - top);
        total += weight;
#pragma unroll
        for (int i = 0; i < PART; i++) {
            sum[i] += weight * row[i];
        }
    }
    if (at < len) {
#pragma unroll
        for (int i = 0; i < PART; i++) {
            out[own + i] = sum[i] / total;
        }
    }
}

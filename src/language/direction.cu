// Directions on a CUDA device: the signs of src/direction.rs and what src/params.rs makes of them, bit for bit.
//
// A thread has one word of one ChaCha block: 32 parameters, 16 apart, so that 16 neighboring threads read and
// write whole sectors of memory. Each of the 16 makes the block anew: that is a dozen integer operations a
// parameter, less than the memory takes, and no thread waits for another. So the file is also plain C++ once
// a few names are defined, and tests/device.rs runs it on the processor.
//
// Compiled at run time for the card that is there. The intrinsics with _rn round once each; written as a * b + c
// a compiler would be free to round once for both.

typedef unsigned int u32;
typedef unsigned long long u64;

struct Key {
    u32 words[8];
};

// Threads of a block of threads; the caller's launches have as many.
#define THREADS 256

__device__ inline u64 thread_index() {
    return (u64)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ inline u32 rotate_left(u32 x, int bits) {
    return (x << bits) | (x >> (32 - bits));
}

__device__ inline void quarter_round(u32 &a, u32 &b, u32 &c, u32 &d) {
    a += b;
    d = rotate_left(d ^ a, 16);
    c += d;
    b = rotate_left(b ^ c, 12);
    a += b;
    d = rotate_left(d ^ a, 8);
    c += d;
    b = rotate_left(b ^ c, 7);
}

// Word `lane` of a block of ChaCha8 with a 64-bit counter and a 64-bit nonce.
__device__ inline u32 sign_word(const u32 *key, u64 stream, u64 block, u32 lane) {
    u32 input[16] = {
        0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u,
        key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7],
        (u32)block, (u32)(block >> 32), (u32)stream, (u32)(stream >> 32),
    };
    u32 x[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        x[i] = input[i];
    }
#pragma unroll
    for (int round = 0; round < 4; round++) {
        quarter_round(x[0], x[4], x[8], x[12]);
        quarter_round(x[1], x[5], x[9], x[13]);
        quarter_round(x[2], x[6], x[10], x[14]);
        quarter_round(x[3], x[7], x[11], x[15]);
        quarter_round(x[0], x[5], x[10], x[15]);
        quarter_round(x[1], x[6], x[11], x[12]);
        quarter_round(x[2], x[7], x[8], x[13]);
        quarter_round(x[3], x[4], x[9], x[14]);
    }
    // Chosen by comparing: an index that is known only at run time would put the words in memory.
    u32 word = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
        word = (u32)i == lane ? x[i] + input[i] : word;
    }
    return word;
}

// out[p] = lsb * values[p]
extern "C" __global__ void __launch_bounds__(THREADS)
write_view(float *out, const int *values, u64 len, float lsb) {
    u64 p = thread_index();
    if (p < len) {
        out[p] = __fmul_rn(__int2float_rn(values[p]), lsb);
    }
}

// out[p] = lsb * values[p] + step * sign
extern "C" __global__ void __launch_bounds__(THREADS)
write_end(float *out, const int *values, u64 len, Key key, u64 stream, float lsb, float step) {
    u64 block = thread_index() / 16;
    u32 lane = (u32)(thread_index() % 16);
    u64 first = 512 * block + lane;
    if (first >= len) {
        return;
    }
    u32 word = sign_word(key.words, stream, block, lane);
    u32 bits = __float_as_uint(step);
    for (u32 row = 0; row < 32; row++) {
        u64 p = first + 16 * row;
        if (p < len) {
            float weight = __fmul_rn(__int2float_rn(values[p]), lsb);
            out[p] = __fadd_rn(weight, __uint_as_float(bits ^ (word & 0x80000000u)));
        }
        word <<= 1;
    }
}

// values[p] += amount * sign of `count` directions, modulo 2^32; a direction is its key's eight words and
// then its amount.
extern "C" __global__ void __launch_bounds__(THREADS)
add_directions(int *values, u64 len, u64 stream, const u32 *directions, u32 count) {
    u64 block = thread_index() / 16;
    u32 lane = (u32)(thread_index() % 16);
    u64 first = 512 * block + lane;
    if (first >= len) {
        return;
    }
    u32 sums[32];
#pragma unroll
    for (int row = 0; row < 32; row++) {
        sums[row] = 0;
    }
    for (u32 i = 0; i < count; i++) {
        const u32 *direction = directions + 9 * (u64)i;
        u32 word = sign_word(direction, stream, block, lane);
        u32 amount = direction[8];
#pragma unroll
        for (int row = 0; row < 32; row++) {
            // All ones where the sign is minus: x ^ -1 is -x - 1.
            u32 minus = 0u - ((word >> (31 - row)) & 1u);
            sums[row] += (amount ^ minus) - minus;
        }
    }
#pragma unroll
    for (int row = 0; row < 32; row++) {
        u64 p = first + 16 * (u64)row;
        if (p < len) {
            values[p] = (int)((u32)values[p] + sums[row]);
        }
    }
}

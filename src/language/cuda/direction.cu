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

// A tensor: where its values begin in the state and in the view, how many they are, the first of its ChaCha blocks
// when those of all tensors are counted through, its number, and the unit of its values.
struct Part {
    u64 at;
    u64 out;
    u64 len;
    u64 first_block;
    u32 stream;
    float lsb;
};

// What a thread works on: one word of one ChaCha block of a tensor.
struct Place {
    u32 part;
    u32 lane;
    u64 block;
    // The first of its parameters in the tensor. There are `rows` of them, 16 apart.
    u64 first;
    u32 rows;
};

__device__ inline Place place(const Part *parts, u32 count) {
    u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 block = thread / 16;
    // The last part that begins at or before the block.
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2;
        if (parts[middle].first_block <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    Place place;
    place.part = low;
    place.lane = (u32)(thread % 16);
    place.block = block - parts[low].first_block;
    place.first = 512 * place.block + place.lane;
    u64 len = parts[low].len;
    u64 rows = place.first < len ? (len - place.first + 15) / 16 : 0;
    place.rows = rows < 32 ? (u32)rows : 32;
    return place;
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

// out[p] = lsb * values[p], of all parts
extern "C" __global__ void __launch_bounds__(THREADS)
write_view(float *out, const int *values, const Part *parts, u32 count) {
    Place at = place(parts, count);
    Part part = parts[at.part];
    values += part.at + at.first;
    out += part.out + at.first;
    for (u32 row = 0; row < at.rows; row++) {
        out[16 * row] = __fmul_rn(__int2float_rn(values[16 * row]), part.lsb);
    }
}

// out[p] = lsb * values[p] + step * sign, of all parts
extern "C" __global__ void __launch_bounds__(THREADS)
write_end(float *out, const int *values, const Part *parts, u32 count, Key key, float step) {
    Place at = place(parts, count);
    Part part = parts[at.part];
    values += part.at + at.first;
    out += part.out + at.first;
    u32 word = sign_word(key.words, part.stream, at.block, at.lane);
    u32 bits = __float_as_uint(step);
    for (u32 row = 0; row < at.rows; row++) {
        float weight = __fmul_rn(__int2float_rn(values[16 * row]), part.lsb);
        out[16 * row] = __fadd_rn(weight, __uint_as_float(bits ^ (word & 0x80000000u)));
        word <<= 1;
    }
}

// values[p] += amount * sign, of all parts and `directions` directions, modulo 2^32. A part has an amount for each
// direction: amounts[part][direction].
extern "C" __global__ void __launch_bounds__(THREADS)
add_directions(int *values, const Part *parts, u32 count, const Key *keys, const u32 *amounts, u32 directions) {
    Place at = place(parts, count);
    Part part = parts[at.part];
    values += part.at + at.first;
    amounts += (u64)at.part * directions;
    u32 sums[32];
#pragma unroll
    for (int row = 0; row < 32; row++) {
        sums[row] = 0;
    }
    for (u32 i = 0; i < directions; i++) {
        u32 amount = amounts[i];
        if (amount == 0) {
            continue;
        }
        u32 word = sign_word(keys[i].words, part.stream, at.block, at.lane);
#pragma unroll
        for (int row = 0; row < 32; row++) {
            // All ones where the sign is minus: x ^ -1 is -x - 1.
            u32 minus = 0u - ((word >> (31 - row)) & 1u);
            sums[row] += (amount ^ minus) - minus;
        }
    }
#pragma unroll
    for (u32 row = 0; row < 32; row++) {
        if (row < at.rows) {
            values[16 * row] = (int)((u32)values[16 * row] + sums[row]);
        }
    }
}

// Runs the kernels of src/language/direction.cu on the processor, thread by thread.
//
// Standard input is a number of requests, the machine's own bytes:
//   u32 kind (0 view, 1 end, 2 add), u32 count, u64 stream, u64 len, u32 key[8], float lsb, float step,
//   int values[len], u32 directions[9 * count]
// Standard output is what each leaves: len floats, or ints for 2.

#include <cstdio>
#include <cstring>
#include <vector>

// What the file takes from CUDA. Each function rounds once; no compiler may join two, as they are not inlined.
#define __device__ static
#define __global__
#define __launch_bounds__(threads)

struct Index {
    unsigned x;
};
static Index blockIdx, blockDim, threadIdx;

static __attribute__((noinline)) float __fmul_rn(float a, float b) { return a * b; }
static __attribute__((noinline)) float __fadd_rn(float a, float b) { return a + b; }
static float __int2float_rn(int a) { return (float)a; }
static unsigned __float_as_uint(float a) {
    unsigned bits;
    memcpy(&bits, &a, 4);
    return bits;
}
static float __uint_as_float(unsigned a) {
    float value;
    memcpy(&value, &a, 4);
    return value;
}

#include "direction.cu"

// As many blocks as a launch for `threads` threads has.
template <typename Kernel> static void launch(u64 threads, Kernel kernel) {
    blockDim.x = THREADS;
    for (blockIdx.x = 0; (u64)blockIdx.x * THREADS < threads; blockIdx.x++) {
        for (threadIdx.x = 0; threadIdx.x < THREADS; threadIdx.x++) {
            kernel();
        }
    }
}

template <typename T> static bool read(T *to, size_t count) {
    return fread(to, sizeof(T), count, stdin) == count;
}

struct Request {
    u32 kind, count;
    u64 stream, len;
    Key key;
    float lsb, step;
};

int main() {
    Request request;
    while (read(&request, 1)) {
        u64 len = request.len, blocks = (len + 511) / 512;
        std::vector<int> values(len);
        std::vector<u32> directions(9 * (size_t)request.count);
        std::vector<float> out(len);
        if (!read(values.data(), len) || !read(directions.data(), directions.size())) {
            return 1;
        }
        switch (request.kind) {
        case 0:
            launch(len, [&] { write_view(out.data(), values.data(), len, request.lsb); });
            break;
        case 1:
            launch(16 * blocks, [&] {
                write_end(out.data(), values.data(), len, request.key, request.stream, request.lsb,
                          request.step);
            });
            break;
        case 2:
            launch(16 * blocks, [&] {
                add_directions(values.data(), len, request.stream, directions.data(), request.count);
            });
            break;
        default:
            return 1;
        }
        const void *written = request.kind == 2 ? (const void *)values.data() : out.data();
        if (fwrite(written, 4, len, stdout) != len) {
            return 1;
        }
    }
    return 0;
}
